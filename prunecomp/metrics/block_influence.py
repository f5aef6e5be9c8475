"""Block influence: how far a layer turns the residual stream."""

from __future__ import annotations

from prunecomp.metrics.base import Evidence


class BlockInfluence:
    """Mean over tokens of ``1 - cos(x_l, x_{l+1})`` (ShortGPT, arXiv 2403.03853, eq. 1; Prune&Comp, section 3)."""

    def score(self, evidence: Evidence) -> dict[int, float]:
        return {layer: 1.0 - evidence.statistics.mean_cosine(layer) for layer in evidence.stack.alive}

    def barriers(self, num_layers: int) -> set[int]:
        return set()


class AngularDistance:
    """Mean over tokens of ``acos(cos(x_l, x_{l+1})) / pi`` (Gromov et al., arXiv 2403.17887, eq. 7, for n = 1)."""

    def score(self, evidence: Evidence) -> dict[int, float]:
        return {layer: evidence.statistics.mean_angle(layer) for layer in evidence.stack.alive}

    def barriers(self, num_layers: int) -> set[int]:
        return set()
