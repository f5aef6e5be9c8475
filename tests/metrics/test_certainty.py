"""What a round says of how sure its choice is, from a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import prunecomp
from prunecomp.metrics.bootstrap import draws
from tests.models import build, draw_tokens


@pytest.mark.parametrize("metric", ["bi", "angular", "ppl"])
def test_each_round_knows_its_runner_up_and_margin(metric: str, generator: torch.Generator) -> None:
    model = build("llama")
    result = prunecomp.prune(model, 3, draw_tokens(model, generator, windows=9), metric=metric, seed=5, preset="paper")
    for number, made in enumerate(result.rounds):
        gone = result.removed[: number + 1]
        others = {layer: score for layer, score in made.scores.items() if layer not in gone}
        if metric == "ppl":
            others = {layer: score for layer, score in others.items() if 0 < layer < 5}
        second = min(others, key=lambda layer: (others[layer], layer), default=None)
        assert made.runner_up == second
        assert made.probability is not None
        if second is None:
            assert (made.probability, made.margin, made.margin_interval) == (1.0, None, [])
            continue
        assert made.margin == pytest.approx(others[second] - float(made.score or 0), abs=1e-9)
        low, high = made.margin_interval
        assert low <= made.margin <= high
        assert made.probability >= 0.5 or low < 0


def test_score_says_where_each_score_lies(generator: torch.Generator) -> None:
    """Against the same draws of per-window scores that are taken window by window."""
    model = build("qwen3")
    tokens = draw_tokens(model, generator, windows=8)
    found = prunecomp.score(model, tokens)
    each = [prunecomp.score(model, tokens[i : i + 1]).scores for i in range(8)]
    sums = np.array([[scores[layer] for layer in range(6)] for scores in each])
    drawn = draws(8, 0) @ sums / 8
    for layer in range(6):
        low, high = np.quantile(drawn[:, layer], [0.025, 0.975])
        assert found.intervals[layer] == pytest.approx([low, high], rel=1e-5)
        assert found.intervals[layer][0] <= found.scores[layer] <= found.intervals[layer][1]


@pytest.mark.parametrize("options", [{"metric": "magnitude"}, {"metric": "bi", "parity": "official"}])
def test_scores_that_are_no_means_over_these_sequences_say_nothing(
    options: dict[str, Any], generator: torch.Generator
) -> None:
    model = build("llama", num_hidden_layers=9)
    tokens = draw_tokens(model, generator)
    (made,) = prunecomp.prune(model, 1, tokens, **options, preset="paper").rounds
    assert (made.probability, made.runner_up, made.margin, made.margin_interval) == (None, None, None, [])
    assert prunecomp.score(model, tokens, **options).intervals == {}


def test_an_undone_removal_leaves_the_certainty_that_was(generator: torch.Generator) -> None:
    model = build("llama")
    pruner = prunecomp.pruner_for(model, draw_tokens(model, generator, windows=6))
    scores = pruner.score()
    first = min(scores, key=lambda layer: scores[layer])
    before = pruner.sequence_scores
    pruner.remove(first)
    pruner.score()
    pruner.undo()
    assert pruner.sequence_scores is before
