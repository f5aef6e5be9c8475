"""Compensations by a scalar that the statistics give without another pass."""

from __future__ import annotations

import math

from prunecomp.compensation.base import Seam
from prunecomp.engine.sinks import PairStatistics
from prunecomp.errors import NumericalError


def magnitude_scale(statistics: PairStatistics, layer: int) -> Seam:
    """``mean_n mean_c ( mean_t |x_{l+1}[n,t,c]| / mean_t |x_l[n,t,c]| )`` (Prune&Comp, section 4).

    A mean of per-channel ratios in each sequence, averaged over sequences; not a ratio of means. Channels whose mean
    below the layer is zero are left out of the mean over c, and counted. Raises :class:`NumericalError` when nothing
    is left to average.
    """
    record = statistics.record(layer)
    return _seam(layer, float(record.ratio.mean()), dead_channels=int(record.dead_channels.sum()))


def norm_ratio(statistics: PairStatistics, layer: int) -> Seam:
    """``mean_n ( mean_t |x_{l+1}[n,t]| / mean_t |x_l[n,t]| )`` with L2 norms of tokens: the same idea without channels.

    Raises :class:`NumericalError` when a sequence is all zeros below the layer.
    """
    stats = statistics.stats(layer)
    return _seam(layer, float((stats.norm / stats.input_norm).mean()))


def least_squares_scale(statistics: PairStatistics, layer: int) -> Seam:
    """The a that minimises ``sum_{n,t} |x_{l+1}[n,t] - a x_l[n,t]|^2``: ``sum <x_l, x_{l+1}> / sum |x_l|^2``.

    Raises :class:`NumericalError` where the layer turns the stream around, so that a would not be positive.
    """
    stats = statistics.stats(layer)
    return _seam(layer, float(stats.dot.sum() / stats.input_square.sum()))


def _seam(layer: int, scale: float, dead_channels: int = 0) -> Seam:
    if not math.isfinite(scale) or scale <= 0:
        raise NumericalError(
            f"layer {layer}: no scale can be estimated ({scale}); a sequence has nothing but zeros on one side of it, "
            "or the layer turns the stream around. Look at the calibration data, or use --compensation none."
        )
    return Seam(scale, dead_channels)
