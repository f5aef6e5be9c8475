"""Compensations by name: each gives the seam that takes a removed layer's place."""

from collections.abc import Callable

from prunecomp.compensation.base import Seam
from prunecomp.compensation.none import no_compensation
from prunecomp.compensation.scale import least_squares_scale, magnitude_scale, norm_ratio
from prunecomp.engine.sinks import PairStatistics

COMPENSATIONS: dict[str, Callable[[PairStatistics, int], Seam]] = {
    "scale": magnitude_scale,
    "norm": norm_ratio,
    "lsq": least_squares_scale,
    "none": no_compensation,
}

__all__ = ["COMPENSATIONS", "Seam", "least_squares_scale", "magnitude_scale", "no_compensation", "norm_ratio"]
