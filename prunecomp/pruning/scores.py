"""What one round of scoring found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ScoreResult:
    """One round without a removal."""

    metric: str
    scores: dict[int, float]
    scales: dict[int, float]
    calibration_digest: str
    layer_forwards: float
    seconds: float
    intervals: dict[int, list[float]] = field(default_factory=dict)
    """Where each score lies with a probability of 95 %, by a bootstrap over the calibration sequences: from, to; empty
    where scores are no means over sequences."""
    similarity: list[list[float]] | None = None
    """Mean cosine over all tokens of every pair of the L + 1 states of a token, from what enters the first layer to
    what leaves the last; there if blocks of layers were scored."""

    def record(self) -> dict[str, Any]:
        return asdict(self)
