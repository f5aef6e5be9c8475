"""Block influence and angular distance: how far a layer, or a block of neighbours, turns the residual stream."""

from __future__ import annotations

import torch

from prunecomp.metrics.base import Evidence, Metric


class _Turn(Metric):
    """A mean over tokens of what a block does to their direction."""

    spans = True
    ends_early = True

    def needs_gram(self, span: int) -> bool:
        return span > 1

    def sequence_scores(self, evidence: Evidence) -> tuple[list[int], torch.Tensor]:
        starts = evidence.starts()
        return starts, torch.stack([self.turned(evidence, first) for first in starts], dim=1)

    def turned(self, evidence: Evidence, first: int) -> torch.Tensor:
        """[N] float64, over the tokens of each sequence: the less, the sooner the block may go."""
        raise NotImplementedError


class BlockInfluence(_Turn):
    """Mean over tokens of ``1 - cos(x_i, x_{i+n})`` (ShortGPT, arXiv 2403.03853, eq. 1; Prune&Comp, section 3)."""

    def score(self, evidence: Evidence) -> dict[int, float]:
        tokens = evidence.statistics.num_tokens
        return {first: 1.0 + float(self.turned(evidence, first).sum() / tokens) for first in evidence.starts()}

    def turned(self, evidence: Evidence, first: int) -> torch.Tensor:
        statistics, n = evidence.statistics, evidence.span
        if n == 1:
            return -statistics.stats(first).cosine
        p = evidence.stack.position(first)
        return -statistics.gram.cosine[:, p, p + n]


class AngularDistance(_Turn):
    """Mean over tokens of ``acos(cos(x_i, x_{i+n})) / pi`` (Gromov et al., arXiv 2403.17887, eq. 7)."""

    def score(self, evidence: Evidence) -> dict[int, float]:
        tokens = evidence.statistics.num_tokens
        return {first: float(self.turned(evidence, first).sum() / tokens) for first in evidence.starts()}

    def turned(self, evidence: Evidence, first: int) -> torch.Tensor:
        statistics, n = evidence.statistics, evidence.span
        if n == 1:
            return statistics.stats(first).angular
        p = evidence.stack.position(first)
        return statistics.gram.angular[:, p, p + n]
