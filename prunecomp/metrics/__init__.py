"""Scores by name; the candidate with the lowest score goes first, ties to the lower layer."""

from prunecomp.metrics.base import Metric
from prunecomp.metrics.block_influence import BlockInfluence

METRICS: dict[str, type[Metric]] = {"bi": BlockInfluence}

__all__ = ["METRICS", "BlockInfluence", "Metric"]
