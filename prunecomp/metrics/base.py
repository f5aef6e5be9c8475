"""What a metric is, and what it may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prunecomp.engine.sinks import PairStatistics
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack


@dataclass(frozen=True)
class Evidence:
    """Everything known when a round is scored."""

    stack: LayerStack
    statistics: PairStatistics
    decoder: Decoder
    seed: int = 0
    given: Sequence[int] = ()
    """The order in which the user wants layers removed, for the metric ``given``."""


class Metric(Protocol):
    def score(self, evidence: Evidence) -> dict[int, float]:
        """One number for each surviving layer, by original index; the lowest is the least needed."""
        ...

    def barriers(self, num_layers: int) -> set[int]:
        """Layers that are no candidates unless the user names the candidates himself."""
        ...
