"""Compensations by name: each gives the seam that takes a removed layer's place."""

from collections.abc import Callable

from prunecomp.compensation.base import Seam
from prunecomp.compensation.none import no_compensation
from prunecomp.compensation.scale import magnitude_scale
from prunecomp.engine.sinks import PairStatistics

COMPENSATIONS: dict[str, Callable[[PairStatistics, int], Seam]] = {
    "scale": magnitude_scale,
    "none": no_compensation,
}

__all__ = ["COMPENSATIONS", "Seam", "magnitude_scale", "no_compensation"]
