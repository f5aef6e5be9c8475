"""Quantised checkpoints: read as the weights they mean, copied as they are stored, folded into their scales."""

from __future__ import annotations

import json
from collections.abc import Callable
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
from prunecomp.model.stack import LayerStack
from prunecomp.subject import describe, open_subject
from tests import tolerances
from tests.checkpoint.quantising import VARIANTS, Variant, quantise
from tests.families.test_families import LOWER, pruned_by
from tests.models import build, draw_tokens

GONE = {2: 1.0, 4: 1.0}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Variant:
    return VARIANTS[request.param]


def made(
    variant: Variant, saved: Callable[..., Path], generator: torch.Generator
) -> tuple[Path, dict[str, torch.Tensor], Any]:
    """The folder, the weights that it means, and the model that has them."""
    model = build(variant.case, **variant.options)
    folder = saved(model)
    meant = quantise(folder, variant, generator)
    for name, weight in meant.items():
        model.get_parameter(name).data.copy_(weight)
    return folder, meant, model


def test_a_read_gives_what_the_format_means(
    variant: Variant, saved: Callable[..., Path], generator: torch.Generator
) -> None:
    folder, meant, _ = made(variant, saved, generator)
    plain = open_subject(folder, dtype="auto", device="cpu", tokenizer=None, allow_pickle=False).plain_tensors()
    assert not [name for name in plain.names() if name.endswith((variant.scale, "qweight", "qzeros", "g_idx"))]
    for name, weight in meant.items():
        got = plain.read(name)
        assert got.dtype == torch.float32
        assert plain.nbytes(name) == got.nbytes
        assert got.is_contiguous()
        assert torch.equal(got, weight.float()), name


@pytest.mark.parametrize("group_size", [None, 2])
def test_scores_are_those_of_the_weights_in_memory(
    variant: Variant, group_size: int | None, saved: Callable[..., Path], generator: torch.Generator
) -> None:
    folder, _, model = made(variant, saved, generator)
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
    variant: Variant, saved: Callable[..., Path], generator: torch.Generator, tmp_path: Path
) -> None:
    folder, _, model = made(variant, saved, generator)
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(folder, 2, tokens, metric="given", given=list(GONE), compensation="none")
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
    assert config["quantization_config"] == variant.config
    assert config["num_hidden_layers"] == model.config.num_hidden_layers - 2
    assert f"Quantised ({variant.config['quant_method']})" in (out / "README.md").read_text()


@pytest.mark.parametrize("fold", ["up", "down"])
def test_a_fold_goes_into_the_scales(
    variant: Variant, fold: str, saved: Callable[..., Path], generator: torch.Generator, tmp_path: Path
) -> None:
    folder, meant, model = made(variant, saved, generator)
    tokens = draw_tokens(model, generator)
    result = pruned_by(folder, tokens, LOWER, fold)
    out = result.save(tmp_path / "out")
    written, before = load_file(out / "model.safetensors"), load_file(folder / "model.safetensors")
    scale = before[f"model.layers.5.self_attn.o_proj.{variant.scale}"]
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
            old = before[f"model.layers.{layer}.{leaf}.{variant.scale}"].double()
            new = written[f"model.layers.{number}.{leaf}.{variant.scale}"]
            assert torch.allclose(new.double(), old * factor, rtol=torch.finfo(new.dtype).eps, atol=0.0)
            for part, tensor in before.items():
                owner = f"model.layers.{layer}.{leaf}."
                part_leaf = part.removeprefix(owner)
                if part.startswith(owner) and part_leaf not in (variant.scale, "bias"):
                    same = written[f"model.layers.{number}.{leaf}.{part_leaf}"]
                    assert torch.equal(same.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), part
    assert meant


def test_info_says_how_weights_are_stored(
    variant: Variant, saved: Callable[..., Path], generator: torch.Generator
) -> None:
    folder, _, model = made(variant, saved, generator)
    seen = describe(folder)
    assert seen["quantised"].startswith(variant.config["quant_method"])
    assert seen["parameters"] == model.num_parameters()
