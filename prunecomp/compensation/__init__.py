"""Compensations by name: each gives the seam that takes the place of what is removed."""

from prunecomp.compensation.base import Estimate, Removal, Seam, put_in_place, wants
from prunecomp.compensation.choice import best_of_all, searched_scale
from prunecomp.compensation.linear import linear_map
from prunecomp.compensation.none import no_compensation
from prunecomp.compensation.scale import least_squares_scale, magnitude_scale, norm_ratio
from prunecomp.io.registry import Registry

COMPENSATIONS: Registry[Estimate] = Registry(
    "--compensation",
    "prunecomp.compensations",
    {
        "scale": magnitude_scale,
        "norm": norm_ratio,
        "lsq": least_squares_scale,
        "search": searched_scale,
        "linear": linear_map,
        "auto": best_of_all,
        "none": no_compensation,
    },
)

__all__ = [
    "COMPENSATIONS",
    "Estimate",
    "Removal",
    "Seam",
    "best_of_all",
    "least_squares_scale",
    "linear_map",
    "magnitude_scale",
    "no_compensation",
    "norm_ratio",
    "put_in_place",
    "searched_scale",
    "wants",
]
