"""Block influence: how far a layer turns the residual stream."""

from __future__ import annotations

from prunecomp.engine.sinks import PairStatistics
from prunecomp.model.stack import LayerStack


class BlockInfluence:
    """Mean over tokens of ``1 - cos(x_l, x_{l+1})`` (ShortGPT, arXiv 2403.03853, eq. 1; Prune&Comp, section 3)."""

    def score(self, statistics: PairStatistics, stack: LayerStack) -> dict[int, float]:
        return {layer: 1.0 - statistics.mean_cosine(layer) for layer in stack.alive}
