"""An export that does not read back as it was meant never gets its name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import prunecomp
import prunecomp.checkpoint.writer as writer
from prunecomp.checkpoint import export
from prunecomp.checkpoint.verify import _has_experts
from prunecomp.errors import OutputError
from prunecomp.model.decoder import Decoder
from prunecomp.model.weights import tensor_digest
from tests.families.test_families import build as build_family
from tests.models import build, draw_tokens

Damage = Callable[[dict[str, torch.Tensor]], None]


def pruned(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> prunecomp.PruneResult:
    model = build("llama").to(dtype)
    return prunecomp.prune(model, 2, draw_tokens(model, generator), metric="given", given=[1, 3], preset="paper")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_record_says_what_was_verified(generator: torch.Generator, tmp_path: Path, dtype: torch.dtype) -> None:
    record = json.loads((pruned(generator, dtype).save(tmp_path / "out") / "prunecomp.json").read_text())
    verified = record["verified"]
    assert verified["tensors"] == len(load_file(tmp_path / "out" / "model.safetensors"))
    assert verified["logits_error"] <= verified["tolerance"] < 30 * torch.finfo(dtype).eps + 0.01
    assert (verified["windows"], verified["tokens"]) == (2, 24)


def test_without_verify_nothing_is_read_back(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "verify_export", lambda *_: pytest.fail("verified"))
    out = pruned(generator).save(tmp_path / "out", verify=False)
    assert json.loads((out / "prunecomp.json").read_text())["verified"] is None


def flip_a_bit(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"].view(torch.int32)[3, 5] ^= 1


def lose_one(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.2.input_layernorm.weight"]


def add_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.9.extra"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, r"model\.layers\.1\.mlp\.up_proj\.weight does not read back"),
        (lose_one, r"model\.layers\.2\.input_layernorm\.weight is missing from the export"),
        (add_one, r"model\.layers\.9\.extra is not meant to be in the export"),
    ],
)
def test_a_damaged_file_is_told_by_tensor_and_leaves_nothing(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Damage, message: str
) -> None:
    def damaged(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        damage(tensors)
        save_file(tensors, path, **options)

    result = pruned(generator)
    monkeypatch.setattr(writer, "save_file", damaged)
    with pytest.raises(OutputError, match=message):
        result.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm_eps": 3.0}, "its logits are off by"),
        ({"num_hidden_layers": 5}, "lacks 9 tensors"),
        ({"num_hidden_layers": 3}, r"model\.layers\.3\..* belongs to no layer"),
        ({"intermediate_size": 81}, "the config asks for"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_told(
    generator: torch.Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
) -> None:
    result = pruned(generator)
    right = export.prune_stored
    monkeypatch.setattr(export, "prune_stored", lambda *some: {**right(*some), **change})
    with pytest.raises(OutputError, match=message):
        result.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_logits_of_a_wrong_seam_are_refused(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = pruned(generator)
    plan, proofs = result.prove()
    monkeypatch.setattr(export, "proved_fold", lambda *given: (plan, proofs))
    result.stack = dataclasses.replace(result.stack, seams=(1.0, 1.0, 3.0, 1.0))
    with pytest.raises(OutputError, match="its logits are off by"):
        result.save(tmp_path / "out")


def test_digests_are_of_bits() -> None:
    quiet = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert tensor_digest(quiet[:1]) != tensor_digest(quiet[1:])
    assert tensor_digest(torch.zeros(2)) != tensor_digest(-torch.zeros(2))
    assert tensor_digest(torch.zeros(2)) != tensor_digest(torch.zeros(2, 1))
    assert tensor_digest(torch.zeros(4, dtype=torch.int16)) != tensor_digest(torch.zeros(2))
    assert tensor_digest(torch.tensor(3)) == tensor_digest(torch.tensor(3))


def test_experts_are_seen_where_they_are() -> None:
    """Where a router decides, the median token is compared, and elsewhere all tokens are."""
    assert _has_experts(Decoder(build_family("mixtral")))
    assert not _has_experts(Decoder(build_family("phi3")))
