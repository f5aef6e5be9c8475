"""Statistics of the residual stream."""

from prunecomp.ops.reference import LayerStats, layer_stats

__all__ = ["LayerStats", "layer_stats"]
