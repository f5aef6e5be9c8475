"""What a metric is."""

from __future__ import annotations

from typing import Protocol

from prunecomp.engine.sinks import PairStatistics
from prunecomp.model.stack import LayerStack


class Metric(Protocol):
    def score(self, statistics: PairStatistics, stack: LayerStack) -> dict[int, float]:
        """One number for each surviving layer, by original index; the lowest is the least needed."""
        ...
