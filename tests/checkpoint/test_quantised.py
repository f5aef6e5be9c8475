"""Quantised checkpoints: read as the weights they mean, copied as they are stored, folded into their scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import prunecomp
from prunecomp.checkpoint.writer import renamed
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families
from prunecomp.model.loader import load_decoder
from prunecomp.model.source import describe, open_source
from prunecomp.model.stack import LayerStack
from tests import tolerances
from tests.checkpoint.quantising import VARIANTS, Variant, quantise
from tests.families.test_families import LOWER, pruned_by
from tests.models import build, draw_tokens
from tests.seeds import seed

GONE = {2: 1.0, 4: 1.0}


@dataclass(frozen=True)
class Checkpoint:
    """A folder, the weights that it means, and the model that has them: shared, and only read."""

    variant: Variant
    folder: Path
    meant: dict[str, torch.Tensor]
    model: Any


def made(
    variant: Variant, saved: Callable[[Any], Path], generator: torch.Generator
) -> tuple[Path, dict[str, torch.Tensor], Any]:
    """The folder, the weights that it means, and the model that has them."""
    model = build(variant.case, **variant.options)
    folder = saved(model)
    meant = quantise(folder, variant, generator)
    for name, weight in meant.items():
        model.get_parameter(name).data.copy_(weight)
    return folder, meant, model


@pytest.fixture(scope="module", params=VARIANTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    def save(model: Any) -> Path:
        folder = tmp_path_factory.mktemp(request.param)
        model.save_pretrained(folder)
        return folder

    variant = VARIANTS[request.param]
    return Checkpoint(variant, *made(variant, save, torch.Generator().manual_seed(seed())))


def test_a_read_gives_what_the_format_means(checkpoint: Checkpoint) -> None:
    folder, meant = checkpoint.folder, checkpoint.meant
    plain = open_source(folder, dtype="auto", device="cpu", tokenizer=None, allow_pickle=False).plain_tensors()
    assert not [
        name for name in plain.names() if name.endswith((checkpoint.variant.scale, "qweight", "qzeros", "g_idx"))
    ]
    for name, weight in meant.items():
        got = plain.read(name)
        assert got.dtype == torch.float32
        assert plain.nbytes(name) == got.nbytes
        assert got.is_contiguous()
        assert torch.equal(got, weight.float()), name


@pytest.mark.parametrize("group_size", [None, 2])
def test_scores_are_those_of_the_weights_in_memory(
    checkpoint: Checkpoint, group_size: int | None, generator: torch.Generator
) -> None:
    folder, model = checkpoint.folder, checkpoint.model
    tokens = draw_tokens(model, generator)
    decoder = load_decoder(folder, group_size=group_size)
    plain = Decoder(model)
    dense = LayerStack.dense(decoder.num_layers)
    with decoder.evaluating(), plain.evaluating():
        assert torch.equal(decoder.run(dense, tokens), plain.run(dense, tokens))
    if group_size is None:
        for metric in ("bi", "magnitude"):
            assert prunecomp.score(folder, tokens, metric=metric).scores == (
                prunecomp.score(model, tokens, metric=metric).scores
            )


def test_removal_alone_copies_every_tensor_bit_for_bit(
    checkpoint: Checkpoint, generator: torch.Generator, tmp_path: Path
) -> None:
    folder, model = checkpoint.folder, checkpoint.model
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(folder, 2, tokens, metric="given", given=list(GONE), compensation="none", preset="paper")
    out = result.save(tmp_path / "out")
    assert result.verified is not None
    layers = families.find(model.config.model_type).layers
    renumber = {layer: number for number, layer in enumerate(result.stack.alive)}
    written, before = load_file(out / "model.safetensors"), load_file(folder / "model.safetensors")
    expected = {new: t for old, t in before.items() if (new := renamed(old, layers, renumber)) is not None}
    assert set(written) == set(expected)
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"] == checkpoint.variant.config
    assert config["num_hidden_layers"] == model.config.num_hidden_layers - 2
    assert f"Quantised ({checkpoint.variant.config['quant_method']})" in (out / "README.md").read_text()


@pytest.mark.parametrize("fold", ["up", "down"])
def test_a_fold_goes_into_the_scales(
    checkpoint: Checkpoint, fold: str, generator: torch.Generator, tmp_path: Path
) -> None:
    folder, meant, model = checkpoint.folder, checkpoint.meant, checkpoint.model
    tokens = draw_tokens(model, generator)
    result = pruned_by(folder, tokens, LOWER, fold)
    out = result.save(tmp_path / "out")
    written, before = load_file(out / "model.safetensors"), load_file(folder / "model.safetensors")
    scale = before[f"model.layers.5.self_attn.o_proj.{checkpoint.variant.scale}"]
    exported = load_decoder(out)
    plain = Decoder(model)
    with exported.evaluating(), plain.evaluating():
        expected = plain.logits(plain.run(result.stack, tokens))
        got = exported.logits(exported.run(LayerStack.dense(exported.num_layers), tokens))
    assert tolerances.error(got, expected) < tolerances.relative(scale.dtype)
    layers = model.config.num_hidden_layers
    factors = dict.fromkeys(range(layers), 1.0)
    below = 1.0
    for layer, seam in zip(result.stack.alive, result.stack.seams, strict=False):
        below *= seam
        factors[layer] = (1.0 if fold == "up" else result.stack.seam_product()) / below
    for number, layer in enumerate(result.stack.alive):
        for leaf in ("self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"):
            factor = 1.0 if leaf == "mlp.up_proj" else factors[layer]
            old = before[f"model.layers.{layer}.{leaf}.{checkpoint.variant.scale}"].double()
            new = written[f"model.layers.{number}.{leaf}.{checkpoint.variant.scale}"]
            assert torch.allclose(new.double(), old * factor, rtol=torch.finfo(new.dtype).eps, atol=0.0)
            for part, tensor in before.items():
                owner = f"model.layers.{layer}.{leaf}."
                part_leaf = part.removeprefix(owner)
                if part.startswith(owner) and part_leaf not in (checkpoint.variant.scale, "bias"):
                    same = written[f"model.layers.{number}.{leaf}.{part_leaf}"]
                    assert torch.equal(same.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), part
    assert meant


def test_info_says_how_weights_are_stored(checkpoint: Checkpoint) -> None:
    folder, model = checkpoint.folder, checkpoint.model
    seen = describe(folder)
    assert seen["quantised"].startswith(checkpoint.variant.config["quant_method"])
    assert seen["parameters"] == model.num_parameters()
