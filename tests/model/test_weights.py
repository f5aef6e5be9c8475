"""Checkpoints that must be refused, each with the file and the remedy in the message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import prunecomp
from prunecomp.errors import CheckpointError, NumericalError, PrunecompError
from prunecomp.model.loader import load_decoder, resolve_model
from prunecomp.model.weights import all_finite, open_checkpoint
from tests.models import build, draw_tokens

Edit = Callable[[Path], None]


@pytest.fixture
def base(saved: Callable[..., Path]) -> Path:
    return saved(build("llama"), max_shard_size="60KB")


def edit_index(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def truncate(folder: Path) -> None:
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-100])


def poison(folder: Path) -> None:
    shard = first_shard(folder)
    tensors = load_file(shard)
    tensors[next(iter(tensors))].view(-1)[3] = torch.nan
    save_file(tensors, shard)


def reshape(folder: Path) -> None:
    shard = first_shard(folder)
    tensors = load_file(shard)
    name = next(iter(tensors))
    tensors[name] = tensors[name][1:].clone()
    save_file(tensors, shard)


def unknown_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "bloom"
    (folder / "config.json").write_text(json.dumps(config))


def only_pickle(folder: Path) -> None:
    torch.save(build("llama").state_dict(), folder / "pytorch_model.bin")
    for path in folder.glob("*.safetensors*"):
        path.unlink()


CASES: dict[str, tuple[Edit, type[PrunecompError], str]] = {
    "missing shard": (lambda f: first_shard(f).unlink(), CheckpointError, "is missing, though"),
    "truncated shard": (truncate, CheckpointError, "damaged or cut short"),
    "garbage shard": (lambda f: first_shard(f).write_bytes(b"x" * 999), CheckpointError, "damaged or cut short"),
    "outside the folder": (
        lambda f: edit_index(f, lambda m: m.update({next(iter(m)): "../secret.safetensors"})),
        CheckpointError,
        "must lie in the folder itself",
    ),
    "tensor not in its shard": (
        lambda f: edit_index(f, lambda m: m.update({"model.extra": first_shard(f).name})),
        CheckpointError,
        "has no tensor 'model.extra'",
    ),
    "missing tensor": (
        lambda f: edit_index(f, lambda m: m.pop("model.norm.weight") and None),
        CheckpointError,
        "lacks 1 tensors that its config asks for: model.norm.weight",
    ),
    "broken index": (
        lambda f: (f / "model.safetensors.index.json").write_text("{") and None,
        CheckpointError,
        "not a safetensors index",
    ),
    "NaN weights": (poison, NumericalError, "NaN or infinite weights"),
    "wrong shape": (reshape, CheckpointError, "the config asks for"),
    "unknown family": (unknown_family, CheckpointError, "known are cohere, cohere2, deepseek_v2"),
    "pickle": (only_pickle, CheckpointError, "--allow-pickle"),
    "no weights": (
        lambda f: [p.unlink() for p in f.glob("*.safetensors*")] and None,
        CheckpointError,
        "no weights to read",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), CheckpointError, "config.json"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_checkpoint_is_refused_with_its_reason(base: Path, case: str) -> None:
    edit, kind, message = CASES[case]
    edit(base)
    with pytest.raises(kind, match=message.replace("(", r"\(")) as caught:
        load_decoder(resolve_model(base))
    assert str(base) in str(caught.value) or case == "unknown family"


def test_a_pickle_is_read_when_asked_for(base: Path, generator: torch.Generator, tmp_path: Path) -> None:
    tokens = draw_tokens(build("llama"), generator)
    before = prunecomp.score(base, tokens)
    model = load_decoder(base).model
    for path in base.glob("*.safetensors*"):
        path.unlink()
    torch.save(model.state_dict(), base / "pytorch_model.bin")
    assert prunecomp.score(base, tokens, allow_pickle=True).scores == before.scores


def test_loaded_weights_equal_those_of_transformers(model: Any, saved: Callable[..., Path]) -> None:
    decoder = load_decoder(saved(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(decoder.model.state_dict()[name], tensor), name
    for (name, mine), (_, theirs) in zip(decoder.model.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(mine, theirs), name
    assert decoder.tied == model.config.tie_word_embeddings


def test_a_single_tensor_is_a_view_of_the_file(base: Path) -> None:
    checkpoint = open_checkpoint(base)
    sizes = sum(checkpoint.nbytes(name) for name in checkpoint.names())
    assert sizes == sum(p.numel() * 4 for p in build("llama").parameters())


def test_a_path_that_does_not_exist_is_no_hub_id(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve_model(tmp_path / "nothing")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_not_finite_is_seen_wherever_it_stands(dtype: torch.dtype, bad: float) -> None:
    # Lengths around the width of a vector register and a thread's share, so that heads and tails are met.
    for count in (1, 7, 33, 4097, 70_000):
        for place in {0, count // 2, count - 1}:
            tensor = torch.linspace(-3, 3, count).to(dtype)
            assert all_finite(tensor)
            tensor[place] = bad
            assert not all_finite(tensor)
            assert not all_finite(torch.stack([tensor, tensor], dim=1)[:, 0]), "not contiguous"
    assert all_finite(torch.empty(0, dtype=dtype))
    largest = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min], dtype=torch.float64).to(dtype)
    assert all_finite(largest), "the largest are finite"
