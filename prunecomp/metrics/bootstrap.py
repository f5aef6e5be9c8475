"""The bootstrap: how far a number would have been another, had other sequences or problems been drawn.

What was drawn is drawn again with replacement, :data:`DRAWS` times (Efron, 1979), from the seed that is given: the same
numbers give the same intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """What a number is with probability :data:`LEVEL`, by the percentiles of its bootstrap distribution."""

    low: float
    high: float

    @classmethod
    def of(cls, drawn: np.ndarray) -> Interval:
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(low), float(high))


def draws(count: int, seed: int) -> np.ndarray:
    """How often each of ``count`` units is drawn: [DRAWS, count] float64, each row summing to ``count``."""
    random = np.random.default_rng(seed)
    return random.multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.float64)


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int) -> Interval:
    """Of the mean of ``second`` less that of ``first``, on the same problems."""
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    return Interval.of(draws(len(differences), seed) @ differences / len(differences))


@dataclass(frozen=True)
class Certainty:
    """How sure a round's choice is."""

    probability: float
    """Share of the drawn calibration sets in which the chosen candidate's score is the lowest."""
    runner_up: int | None
    """The candidate with the next higher score; None where there is no other."""
    margin: float | None
    """By how much that is higher."""
    margin_interval: Interval | None

    def fields(self) -> dict[str, Any]:
        """As a :class:`prunecomp.pruning.result.RoundRecord` holds it."""
        low_high = [] if self.margin_interval is None else [self.margin_interval.low, self.margin_interval.high]
        return {**vars(self), "margin_interval": low_high}


def choice_certainty(layers: Sequence[int], sums: np.ndarray, weights: np.ndarray, chosen: int, seed: int) -> Certainty:
    """Of the choice of ``chosen`` among ``layers``, whose scores are ``sums`` over the sequences' ``weights``: [N, C]
    float64, and [N]. Ties go to the lower layer, as in the choice itself."""
    drawn = draws(len(sums), seed)
    scores = drawn @ sums / (drawn @ weights)[:, None]
    order = np.argsort(layers, kind="stable")
    lowest = order[np.argmin(scores[:, order], axis=1)]
    here = list(layers).index(chosen)
    means = sums.sum(axis=0) / weights.sum()
    others = [i for i in order if i != here]
    if not others:
        return Certainty(1.0, None, None, None)
    next_one = min(others, key=lambda i: means[i])
    margins = scores[:, next_one] - scores[:, here]
    return Certainty(
        float(np.mean(lowest == here)), int(layers[next_one]), float(means[next_one] - means[here]),
        Interval.of(margins),
    )  # fmt: skip


def score_intervals(layers: Sequence[int], sums: np.ndarray, weights: np.ndarray, seed: int) -> dict[int, Interval]:
    """Of each layer's score."""
    drawn = draws(len(sums), seed)
    scores = drawn @ sums / (drawn @ weights)[:, None]
    return {layer: Interval.of(column) for layer, column in zip(layers, scores.T, strict=True)}
