"""Block influence and angular distance: how far a layer, or a block of neighbours, turns the residual stream."""

from __future__ import annotations

import torch

from prunecomp.engine.gram import gram_demand
from prunecomp.engine.placement import Demand, ModelShape
from prunecomp.engine.statistics import LayerRecord
from prunecomp.metrics.base import Candidates, Metric


class _Turn(Metric):
    """A mean over tokens of what a block does to their direction."""

    spans = True
    ends_early = True
    least = 0.0
    """What is added to the mean, so that a score is 0 where nothing is turned."""

    def needs_gram(self, span: int, parity: str | None = None) -> bool:
        return span > 1

    def demand(self, shape: ModelShape, span: int) -> Demand:
        return gram_demand(shape) if span > 1 else Demand()

    def score(self, candidates: Candidates) -> dict[int, float]:
        statistics = candidates.statistics
        counted = slice(None)
        if self.heeds_parity and candidates.parity == "official":
            counted = slice(max(1, len(statistics.tokens) // 2))
        tokens = int(statistics.tokens[counted].sum())
        return {
            first: self.least + float(self.turned(statistics.of(*candidates.block(first)))[counted].sum() / tokens)
            for first in candidates.starts()
        }

    def sequence_scores(self, candidates: Candidates) -> tuple[list[int], torch.Tensor]:
        starts, statistics = candidates.starts(), candidates.statistics
        return starts, torch.stack([self.turned(statistics.of(*candidates.block(first))) for first in starts], dim=1)

    def turned(self, record: LayerRecord) -> torch.Tensor:
        """[N] float64, over the tokens of each sequence: the less, the sooner the block may go."""
        raise NotImplementedError


class BlockInfluence(_Turn):
    """Mean over tokens of ``1 - cos(x_i, x_{i+n})`` (ShortGPT, arXiv 2403.03853, eq. 1; Prune&Comp, section 3).

    ``parity="official"`` scores on the first half of the sequences alone, as the published CosSim_BI does with 128 of
    its 256; scales are estimated on all of them.
    """

    heeds_parity = True
    least = 1.0

    def turned(self, record: LayerRecord) -> torch.Tensor:
        return -record.cosine


class AngularDistance(_Turn):
    """Mean over tokens of ``acos(cos(x_i, x_{i+n})) / pi`` (Gromov et al., arXiv 2403.17887, eq. 7)."""

    def turned(self, record: LayerRecord) -> torch.Tensor:
        return record.angular
