"""Scores by name; the candidate with the lowest score goes first, ties to the lower layer."""

from prunecomp.io.registry import Registry
from prunecomp.metrics.base import Candidates, Metric
from prunecomp.metrics.block_influence import AngularDistance, BlockInfluence
from prunecomp.metrics.controls import Given, Last, Random, check_order
from prunecomp.metrics.magnitude import Magnitude
from prunecomp.metrics.perplexity import LeaveOneOut
from prunecomp.metrics.span import SpanCosine
from prunecomp.metrics.taylor import Taylor

METRICS: Registry[type[Metric]] = Registry(
    "--metric",
    "prunecomp.metrics",
    {
        "bi": BlockInfluence,
        "span": SpanCosine,
        "angular": AngularDistance,
        "ppl": LeaveOneOut,
        "taylor": Taylor,
        "magnitude": Magnitude,
        "random": Random,
        "last": Last,
        "given": Given,
    },
)

__all__ = ["METRICS", "BlockInfluence", "Candidates", "Metric", "check_order"]
