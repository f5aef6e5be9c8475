"""What the published code does otherwise, under ``parity="official"``: against that code's formulas, and other than the
default where it should be."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import prunecomp
from prunecomp.data.windows import Windows
from prunecomp.engine.gram import CHANNELS
from prunecomp.engine.placement import Placement
from prunecomp.engine.states import Tier
from prunecomp.errors import OptionError
from prunecomp.metrics.magnitude import is_weight
from prunecomp.model.decoder import Decoder
from prunecomp.model.loader import multiplies
from prunecomp.pruning.pruner import Pruner
from tests.engine.test_ragged import PackingDecoder, ragged
from tests.metrics.test_span import spread
from tests.models import build, draw_tokens
from tests.oracles import iterative, span
from tests.tolerances import SCALE

ROOM = Placement(3, None, {Tier.device: 5}, Tier.device, {})


def states_of(model: Any, tokens: Any) -> span.States:
    exact = copy.deepcopy(model).double()
    return [iterative.boundary_states(exact, sequence) for sequence in tokens]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_span_takes_cosines_along_tokens_and_leaves_the_ends_out(
    model: Any, generator: torch.Generator, n: int
) -> None:
    spread(model, generator)
    tokens = draw_tokens(model, generator)
    result = prunecomp.score(model, tokens, metric="span", span=n, parity="official")
    states = states_of(model, tokens)
    expected = {p: span.along_tokens(states, p, p + n) for p in range(1, 6 - n)}  # starts 0 and L - n are left out
    assert result.scores == pytest.approx(expected, rel=SCALE)
    default = prunecomp.score(model, tokens, metric="span", span=n)
    assert set(default.scores) == set(range(7 - n))
    assert result.scores != pytest.approx({p: default.scores[p] for p in expected}, rel=1e-3)
    assert result.scales == {p: scale for p, scale in default.scales.items() if p in expected}


@pytest.mark.parametrize("packed", [False, True])
def test_cosines_along_tokens_stay_within_their_window(generator: torch.Generator, packed: bool) -> None:
    model = build("mistral", hidden_size=2 * CHANNELS + 64, num_attention_heads=8).double()
    windows = ragged(model, generator)
    sequences = [row[:n] for row, n in zip(windows.tokens, windows.lengths.tolist(), strict=True)]
    decoder = (PackingDecoder if packed else Decoder)(model)
    pruner = Pruner(decoder, windows, metric="span", span=2, parity="official", placement=ROOM)
    states = states_of(model, sequences)
    expected = {p: span.along_tokens(states, p, p + 2) for p in range(1, 4)}
    assert pruner.score() == pytest.approx(expected, rel=SCALE)


def test_a_channel_of_zeros_has_cosine_0_along_tokens(generator: torch.Generator) -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 5] = 0.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[5] = layer.mlp.down_proj.weight[5] = 0.0
    tokens = draw_tokens(model, generator)
    states = states_of(model, tokens)
    scores = prunecomp.score(model, tokens, metric="span", span=2, parity="official").scores
    assert scores == pytest.approx({p: span.along_tokens(states, p, p + 2) for p in range(1, 4)}, rel=SCALE)
    assert min(scores.values()) > 1 / 48


def test_span_removes_another_block_where_the_definitions_disagree(generator: torch.Generator) -> None:
    model = build("llama")
    with torch.no_grad():  # layers 0 and 1 write next to nothing: by any definition they go first, but for start 0
        for layer in model.model.layers[:2]:
            layer.self_attn.o_proj.weight.mul_(1e-3)
            layer.mlp.down_proj.weight.mul_(1e-3)
    tokens = draw_tokens(model, generator)
    assert prunecomp.prune(model, 2, tokens, metric="span", preset="paper").rounds[0].block == [0, 1]
    official = prunecomp.prune(model, 2, tokens, metric="span", parity="official", preset="paper")
    states = states_of(model, tokens)
    first = min(range(1, 4), key=lambda p: span.along_tokens(states, p, p + 2))
    assert official.rounds[0].block == [first, first + 1]
    assert prunecomp.prune(model, 4, tokens, metric="span", parity="official", preset="paper").removed == [1, 2, 3, 4]
    with pytest.raises(OptionError, match="no block of --span layers is left"):
        prunecomp.prune(model, 5, tokens, metric="span", parity="official", preset="paper")


def test_magnitude_scores_what_its_own_scales_have_multiplied(model: Any, generator: torch.Generator) -> None:
    tokens = draw_tokens(model, generator)
    candidates = [1, 2, 3, 4]  # so that there is something below every cut
    result = prunecomp.prune(
        model, 3, tokens, metric="magnitude", parity="official", candidates=candidates, preset="paper"
    )
    work = copy.deepcopy(model).double()
    names = list(range(6))
    for number, one_round in enumerate(result.rounds):
        expected = {
            name: sum(float(w.detach().abs().sum()) for key, w in layer.named_parameters() if is_weight(key))
            for name, layer in zip(names, work.model.layers, strict=True)
        }
        assert one_round.scores == pytest.approx(expected, rel=SCALE)
        layer = min((name for name in names if name in candidates), key=lambda name: expected[name])
        assert one_round.layer == layer
        if number == 2:
            break
        states = [iterative.boundary_states(work, sequence) for sequence in tokens]
        iterative.remove(work, names, layer, iterative.magnitude_scale(states, names.index(layer)))
    default = prunecomp.prune(model, 3, tokens, metric="magnitude", candidates=candidates, preset="paper")
    assert default.rounds[0].scores == result.rounds[0].scores
    assert result.rounds[1].scores[0] != pytest.approx(default.rounds[1].scores[0], rel=1e-4)


def test_magnitude_under_parity_marches_upwards(generator: torch.Generator) -> None:
    model = build("llama", num_hidden_layers=12)
    with torch.no_grad():  # alike but for layer 6, and every layer stretches the stream
        for layer in model.model.layers:
            layer.load_state_dict(model.model.layers[0].state_dict())
        model.model.layers[6].mlp.up_proj.weight.mul_(0.9)
    tokens = draw_tokens(model, generator)
    default = prunecomp.prune(model, 3, tokens, metric="magnitude", preset="paper")
    official = prunecomp.prune(model, 3, tokens, metric="magnitude", parity="official", preset="paper")
    assert default.removed == [6, 4, 5]
    assert official.scales[0] > 1
    assert official.removed == [6, 7, 8]


def test_bi_scores_on_the_first_half_and_scales_on_all(model: Any, generator: torch.Generator) -> None:
    tokens = draw_tokens(model, generator, windows=7)
    official = prunecomp.score(model, tokens, parity="official")
    half = prunecomp.score(model, tokens[:3])
    default = prunecomp.score(model, tokens)
    assert official.scores == pytest.approx(half.scores, rel=SCALE, abs=SCALE / 100)
    assert official.scales == default.scales
    assert official.scores != default.scores
    assert official.scales != half.scales
    one = prunecomp.score(model, tokens[:1], parity="official")
    assert one.scores == prunecomp.score(model, tokens[:1]).scores
    blocks = prunecomp.score(model, tokens, span=2, parity="official").scores
    assert blocks == pytest.approx(prunecomp.score(model, tokens[:3], span=2).scores, rel=SCALE)


def test_half_of_windows_of_different_lengths_is_a_mean_over_its_tokens(generator: torch.Generator) -> None:
    model = build("llama")
    windows = ragged(model, generator)
    official = Pruner(Decoder(model), windows, parity="official", placement=ROOM).score()
    half = Windows(windows.tokens[:3], "test", windows.lengths[:3])
    assert official == pytest.approx(Pruner(Decoder(model), half, placement=ROOM).score(), rel=SCALE)


def test_a_checkpoint_runs_in_float16_unless_a_dtype_is_named(generator: torch.Generator, saved: Any) -> None:
    model = build("llama").to(torch.bfloat16)
    tokens = draw_tokens(model, generator)
    base = saved(model)
    usual = torch.bfloat16 if multiplies(torch.bfloat16, torch.device("cpu")) else torch.float32
    assert prunecomp.prune(base, 1, tokens, preset="paper").model_source.dtype == usual
    official = prunecomp.prune(base, 1, tokens, parity="official", preset="paper")
    assert official.model_source.dtype == torch.float16
    assert official.options.dtype == "auto"
    named = prunecomp.prune(base, 1, tokens, parity="official", dtype="float32", preset="paper")
    assert named.model_source.dtype == torch.float32
    scores = prunecomp.score(base, tokens, parity="official").scores
    assert scores == official.rounds[0].scores
    np.testing.assert_allclose(list(scores.values()), list(named.rounds[0].scores.values()), rtol=1e-2)


def test_parity_and_an_early_stop_do_not_go_together(generator: torch.Generator) -> None:
    model = build("llama")
    with pytest.raises(OptionError, match="--parity official has every sequence looked at"):
        prunecomp.prune(model, 1, draw_tokens(model, generator), parity="official", confidence=0.99, preset="paper")
