"""Scores that do not look at the model: controls to compare with, and an order that the user brings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunecomp.errors import OptionError
from prunecomp.io.values import listed
from prunecomp.metrics.base import Candidates, Metric


def check_order(given: Sequence[int], num_layers: int) -> list[int]:
    """The order as a list; raises :class:`OptionError` unless it names layers, each once."""
    order = list(given)
    if len(set(order)) != len(order) or not set(order) <= set(range(num_layers)) or not order:
        raise OptionError(
            f"--given {listed(order)}: list layers from 0 to {num_layers - 1} once each, with --metric given"
        )
    return order


class Random(Metric):
    """A random order, drawn from the run's seed."""

    def score(self, candidates: Candidates) -> dict[int, float]:
        places = np.random.default_rng(candidates.seed).permutation(candidates.stack.num_layers)
        return {layer: float(places[layer]) for layer in candidates.stack.alive}


class Last(Metric):
    """The topmost layer first."""

    def score(self, candidates: Candidates) -> dict[int, float]:
        return {layer: float(candidates.stack.num_layers - 1 - layer) for layer in candidates.stack.alive}


class Given(Metric):
    """The layers that the user lists, in that order; the others after them, from below."""

    takes_order = True

    def score(self, candidates: Candidates) -> dict[int, float]:
        order = check_order(candidates.given, candidates.stack.num_layers)
        return {
            layer: float(order.index(layer) if layer in order else len(order) + layer)
            for layer in candidates.stack.alive
        }
