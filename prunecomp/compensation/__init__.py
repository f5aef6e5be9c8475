"""Compensations by name: each gives the seam that takes the place of what is removed."""

from prunecomp.compensation.base import Estimate, Removal, Seam, put_in_place, wants
from prunecomp.compensation.choice import searched_scale
from prunecomp.compensation.scale import least_squares_scale, magnitude_scale, no_compensation, norm_ratio
from prunecomp.io.registry import Registry

COMPENSATIONS: Registry[Estimate] = Registry(
    "--compensation",
    "prunecomp.compensations",
    {
        "scale": magnitude_scale,
        "norm": norm_ratio,
        "lsq": least_squares_scale,
        "search": searched_scale,
        "none": no_compensation,
    },
)

__all__ = [
    "COMPENSATIONS",
    "Estimate",
    "Removal",
    "Seam",
    "least_squares_scale",
    "magnitude_scale",
    "no_compensation",
    "norm_ratio",
    "put_in_place",
    "searched_scale",
    "wants",
]
