"""Every metric against its formula in float64, and the controls against what they promise."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import prunecomp
from prunecomp.errors import OptionError
from tests.models import build, draw_tokens
from tests.oracles import iterative
from tests.tolerances import SCALE


def float64_states(model: Any, tokens: torch.Tensor) -> list[list[torch.Tensor]]:
    exact = copy.deepcopy(model).double()
    return [iterative.boundary_states(exact, sequence) for sequence in tokens]


def test_angular_distance_agrees_with_float64(model: Any, generator: torch.Generator) -> None:
    tokens = draw_tokens(model, generator)
    scores = prunecomp.score(model, tokens, metric="angular").scores
    states = float64_states(model, tokens)
    for layer, score in scores.items():
        angles = [
            math.acos(float(x @ y / (x.norm() * y.norm()))) / math.pi
            for sequence in states
            for x, y in zip(sequence[layer], sequence[layer + 1], strict=True)
        ]
        assert score == pytest.approx(sum(angles) / len(angles), rel=SCALE)


def test_magnitude_sums_matrices_and_norm_gains_of_the_original_weights(model: Any, generator: torch.Generator) -> None:
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(model, 2, tokens, metric="magnitude", candidates=range(6), preset="paper")
    expected = {
        number: sum(
            float(p.detach().double().abs().sum()) for name, p in layer.named_parameters() if not name.endswith("bias")
        )
        for number, layer in enumerate(model.model.layers)
    }
    for one_round in result.rounds:
        for layer, score in one_round.scores.items():
            assert score == pytest.approx(expected[layer], rel=SCALE)
    assert result.removed == sorted(expected, key=lambda layer: expected[layer])[:2]


def test_magnitude_is_the_same_streamed(generator: torch.Generator, tmp_path: Path) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    model.save_pretrained(tmp_path / "base")
    plain = prunecomp.prune(model, 2, tokens, metric="magnitude", candidates=range(6), preset="paper")
    streamed = prunecomp.prune(
        tmp_path / "base",
        2,
        tokens,
        metric="magnitude",
        candidates=range(6),
        device_memory=400_000,
        disk=tmp_path,
        preset="paper",
    )
    assert streamed.placement.group_size == 1
    assert [r.scores for r in streamed.rounds] == [r.scores for r in plain.rounds]


def test_magnitude_leaves_the_ends_alone_unless_candidates_are_named(generator: torch.Generator) -> None:
    model = build("llama", num_hidden_layers=10)
    tokens = draw_tokens(model, generator)
    assert set(prunecomp.prune(model, 3, tokens, metric="magnitude", preset="paper").removed) <= {4, 5, 6, 7}
    with pytest.raises(OptionError, match="only 4 of the model's 10 layers are candidates"):
        prunecomp.prune(model, 4, tokens, metric="magnitude", preset="paper")


def test_controls_remove_what_they_say(generator: torch.Generator) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    assert prunecomp.prune(model, 3, tokens, metric="last", preset="paper").removed == [5, 4, 3]
    assert prunecomp.prune(model, 3, tokens, metric="given", given=[4, 1, 2], preset="paper").removed == [4, 1, 2]
    order = list(np.argsort(np.random.default_rng(7).permutation(6)))
    assert prunecomp.prune(model, 4, tokens, metric="random", seed=7, preset="paper").removed == order[:4]
    calls: list[int] = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    for given in ([], [1, 1], [6]):
        with pytest.raises(OptionError, match="--given"):
            prunecomp.prune(model, 1, tokens, metric="given", given=given, preset="paper")
    assert not calls, "an order that cannot be meant is refused before any layer runs"


def test_the_scales_of_a_given_order_are_those_of_the_oracle(model: Any, generator: torch.Generator) -> None:
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(model, 3, tokens, metric="given", given=[3, 1, 4], preset="paper")
    work = copy.deepcopy(model).double()
    names = list(range(6))
    for layer, scale in zip([3, 1, 4], result.scales, strict=True):
        states = [iterative.boundary_states(work, sequence) for sequence in tokens]
        expected = iterative.magnitude_scale(states, names.index(layer))
        assert scale == pytest.approx(expected, rel=SCALE)
        iterative.remove(work, names, layer, expected)
