"""The scalar that is searched for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.compensation.choice import SEARCH_RUNS, minimise
from tests.models import build, draw_tokens
from tests.oracles import iterative


@torch.no_grad()
def loss(model: Any, windows: torch.Tensor) -> float:
    """Mean over windows, in the model's dtype."""
    return sum(float(model(input_ids=t[None], labels=t[None], use_cache=False).loss) for t in windows) / len(windows)


def test_the_search_begins_with_what_nothing_would_do(generator: torch.Generator) -> None:
    model = build("llama")
    pruner = prunecomp.pruner_for(model, draw_tokens(model, generator, windows=6), compensation="search")
    pruner.score()
    losses = pruner.remove(3).losses
    assert "1.000000" in losses
    assert len(losses) <= 8


def test_search_finds_the_scale_of_least_loss(model: Any, generator: torch.Generator) -> None:
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(model, 1, tokens, metric="given", given=[2], compensation="search", preset="paper")

    def exact(scale: float) -> float:
        work = copy.deepcopy(model).double()
        iterative.remove(work, list(range(6)), 2, scale)
        return loss(work, tokens)

    tried = {float(scale): value for scale, value in result.rounds[0].losses.items()}
    assert len(tried) <= SEARCH_RUNS
    for scale, value in tried.items():
        assert value == pytest.approx(exact(scale), rel=1e-4)
    found = exact(result.scales[0])
    assert found <= exact(1.0) + 1e-5
    paper = prunecomp.prune(model, 1, tokens, metric="given", given=[2], preset="paper").scales[0]
    assert found <= exact(paper) + 1e-5


def test_minimising_a_parabola_takes_its_vertex() -> None:
    for low in (-0.7, 0.03, 0.4, 2.5):
        tried = minimise(lambda x, low=low: (x - low) ** 2, 0.0, 0.1, 12, 3.0)
        assert min(tried, key=lambda x: tried[x]) == pytest.approx(low, abs=1e-3)
    tried = minimise(lambda x: -x, 0.0, 0.1, 12, 1.5)
    assert max(tried) == 1.5
