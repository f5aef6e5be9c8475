"""What one round of scoring found, and what an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from prunecomp.evaluation.tasks import TaskScore
from prunecomp.io.escape import html_table
from prunecomp.io.values import listed


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return f"ScoreResult({self.metric}: of {len(self.scores)} the first to go are {listed(self._ranked(), 3)})"

    def _repr_html_(self) -> str:
        """The layers, the one to remove first on top, for a notebook."""
        rows = [(layer, f"{self.scores[layer]:.5g}", f"{self.scales[layer]:.5g}") for layer in self._ranked()]
        return html_table("The one to remove first on top", ("layer", self.metric, "scale"), rows)

    def _ranked(self) -> list[int]:
        return sorted(self.scores, key=lambda layer: (self.scores[layer], layer))

    def record(self) -> dict[str, Any]:
        return asdict(self)


class Evaluated(float):
    """A perplexity, NaN where there was no text; and ``tasks``, the scores in the tasks of lm-eval that were asked for,
    beside those of the ``base``, or of the model itself without one."""

    def __new__(cls, perplexity: float, tasks: Sequence[TaskScore] = ()) -> Evaluated:
        made = super().__new__(cls, perplexity)
        made.tasks = list(tasks)
        return made

    tasks: list[TaskScore]
