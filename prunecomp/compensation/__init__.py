"""Compensations by name: each gives the seam that takes the place of what is removed."""

from collections.abc import Callable

from prunecomp.compensation.base import Cut, Seam, put_in_place
from prunecomp.compensation.none import no_compensation
from prunecomp.compensation.scale import least_squares_scale, magnitude_scale, norm_ratio
from prunecomp.registry import Registry

Compensation = Callable[[Cut], Seam]

COMPENSATIONS: Registry[Compensation] = Registry(
    "--compensation",
    "prunecomp.compensations",
    {
        "scale": magnitude_scale,
        "norm": norm_ratio,
        "lsq": least_squares_scale,
        "none": no_compensation,
    },
)

__all__ = [
    "COMPENSATIONS",
    "Compensation",
    "Cut",
    "Seam",
    "least_squares_scale",
    "magnitude_scale",
    "no_compensation",
    "norm_ratio",
    "put_in_place",
]
