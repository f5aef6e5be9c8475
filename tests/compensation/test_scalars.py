"""The scalar compensations against their formulas in float64, round after round on whole re-runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import prunecomp
from prunecomp.errors import NumericalError
from prunecomp.model.decoder import Decoder
from tests.models import build, draw_tokens
from tests.oracles import iterative
from tests.tolerances import SCALE, error, relative


def norm_ratio(states: list[list[torch.Tensor]], p: int) -> float:
    each = [float(s[p + 1].norm(dim=-1).mean() / s[p].norm(dim=-1).mean()) for s in states]
    return sum(each) / len(each)


def least_squares(states: list[list[torch.Tensor]], p: int) -> float:
    x = torch.cat([s[p] for s in states]).flatten().unsqueeze(1)
    y = torch.cat([s[p + 1] for s in states]).flatten().unsqueeze(1)
    return float(torch.linalg.lstsq(x, y).solution)


@pytest.mark.parametrize(("name", "formula"), [("norm", norm_ratio), ("lsq", least_squares)])
def test_scales_agree_with_float64_on_full_reruns(
    model: Any, generator: torch.Generator, name: str, formula: Any
) -> None:
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(model, 3, tokens, compensation=name, preset="paper")
    work = copy.deepcopy(model).double()
    names = list(range(6))
    for layer, scale in zip(result.removed, result.scales, strict=True):
        states = [iterative.boundary_states(work, sequence) for sequence in tokens]
        expected = formula(states, names.index(layer))
        assert scale == pytest.approx(expected, rel=SCALE)
        iterative.remove(work, names, layer, expected)


@pytest.mark.parametrize("name", ["norm", "lsq"])
def test_exports_equal_the_seam_model(model: Any, generator: torch.Generator, tmp_path: Any, name: str) -> None:
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(model, 3, tokens, compensation=name, preset="paper")
    loaded = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "out"))
    decoder = Decoder(model)
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
        assert error(loaded(input_ids=tokens).logits, expected) < relative(torch.float32)


def test_a_layer_that_turns_the_stream_around_has_no_least_squares_scale(generator: torch.Generator) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    with torch.no_grad():  # a first layer that writes -2 x at least
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        model.model.embed_tokens.weight.abs_()
        layer.mlp.down_proj.weight.fill_(-50.0)
        layer.mlp.gate_proj.weight.abs_()
        layer.mlp.up_proj.weight.abs_()
        layer.post_attention_layernorm.weight.abs_()
    with pytest.raises(NumericalError, match="layer 0: no scale can be estimated"):
        prunecomp.prune(model, 1, tokens, metric="given", given=[0], compensation="lsq", preset="paper")
