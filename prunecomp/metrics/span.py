"""Span cosine: the block of neighbouring layers that turns the residual stream least, taken out in one piece."""

from __future__ import annotations

from prunecomp.engine.gram import gram_demand
from prunecomp.engine.placement import Demand, ModelShape
from prunecomp.metrics.base import Candidates
from prunecomp.metrics.block_influence import BlockInfluence


class SpanCosine(BlockInfluence):
    """Mean over tokens of ``1 - cos(x_i, x_{i+n})`` (the paper's CL; Prune&Comp, section 3), as ``bi`` has it; but
    without ``--span`` all layers that are to go are one block.

    ``parity="official"`` ranks blocks as the published CosSim_CL does: by ``1 - `` the cosine, channel by channel, of
    the two sequences of values over a window's tokens, averaged over channels and windows; and the blocks that begin at
    the lowest survivor or end at the highest are left out.
    """

    one_block = True

    def demand(self, shape: ModelShape, span: int) -> Demand:
        return gram_demand(shape)

    def needs_gram(self, span: int, parity: str | None = None) -> bool:
        return span > 1 or self.needs_cosines_along_tokens(parity)

    def needs_cosines_along_tokens(self, parity: str | None) -> bool:
        return parity == "official"

    def score(self, candidates: Candidates) -> dict[int, float]:
        if candidates.parity != "official":
            return super().score(candidates)
        mean = candidates.statistics.mean_cosine_along_tokens()
        p, n = candidates.stack.position, candidates.span
        return {first: 1.0 - float(mean[p(first), p(first) + n]) for first in candidates.starts()[1:-1]}
