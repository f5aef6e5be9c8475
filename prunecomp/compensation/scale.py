"""Compensations by a scalar that the statistics give without another pass."""

from __future__ import annotations

import math

from prunecomp.compensation.base import Removal, Seam
from prunecomp.errors import NumericalError


def no_compensation(removal: Removal) -> Seam:
    """A seam of 1 whatever the statistics: the layers are cut out and the stream left as it is."""
    return Seam(1.0)


def magnitude_scale(removal: Removal) -> Seam:
    """``mean_n mean_c ( mean_t |x_j[n,t,c]| / mean_t |x_i[n,t,c]| )`` for layers [i, j) (Prune&Comp, section 4).

    A mean of per-channel ratios in each sequence, averaged over sequences; not a ratio of means. Channels whose mean
    below the layers is zero are left out of the mean over c, and counted. Raises :class:`NumericalError` when nothing
    is left to average.
    """
    record = removal.statistics.of(*removal.block)
    return _seam(removal, float(record.ratio.mean()), dead_channels=int(record.dead_channels.sum()))


def norm_ratio(removal: Removal) -> Seam:
    """``mean_n ( mean_t |x_j[n,t]| / mean_t |x_i[n,t]| )`` with L2 norms of tokens: the same idea without channels.

    Raises :class:`NumericalError` when a sequence is all zeros below the layers.
    """
    record = removal.statistics.of(*removal.block)
    return _seam(removal, float((record.norm / record.input_norm).mean()))


def least_squares_scale(removal: Removal) -> Seam:
    """The a that minimises ``sum_{n,t} |x_j[n,t] - a x_i[n,t]|^2``: ``sum <x_i, x_j> / sum |x_i|^2``.

    Raises :class:`NumericalError` where the layers turn the stream around, so that a would not be positive.
    """
    record = removal.statistics.of(*removal.block)
    return _seam(removal, float(record.dot.sum() / record.input_square.sum()))


def _seam(removal: Removal, scale: float, dead_channels: int = 0) -> Seam:
    if not math.isfinite(scale) or scale <= 0:
        layers = f"layer {removal.block[0]}" if len(removal.block) == 1 else f"layers {list(removal.block)}"
        raise NumericalError(
            f"{layers}: no scale can be estimated ({scale}); a sequence has nothing but zeros on one side, "
            "or the stream is turned around. Look at the calibration data, or use --compensation none."
        )
    return Seam(scale, dead_channels)
