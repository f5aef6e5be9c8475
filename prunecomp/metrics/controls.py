"""Scores that do not look at the model: controls to compare with, and an order that the user brings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunecomp.errors import OptionError
from prunecomp.metrics.base import Evidence, Metric
from prunecomp.values import listed


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

    def score(self, evidence: Evidence) -> dict[int, float]:
        places = np.random.default_rng(evidence.seed).permutation(evidence.stack.num_layers)
        return {layer: float(places[layer]) for layer in evidence.stack.alive}


class Last(Metric):
    """The topmost layer first."""

    def score(self, evidence: Evidence) -> dict[int, float]:
        return {layer: float(evidence.stack.num_layers - 1 - layer) for layer in evidence.stack.alive}


class Given(Metric):
    """The layers that the user lists, in that order; the others after them, from below."""

    takes_order = True

    def score(self, evidence: Evidence) -> dict[int, float]:
        order = check_order(evidence.given, evidence.stack.num_layers)
        return {
            layer: float(order.index(layer) if layer in order else len(order) + layer) for layer in evidence.stack.alive
        }
