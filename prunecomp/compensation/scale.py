"""The paper's magnitude compensation."""

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
    scale = float(record.ratio.mean())
    if not math.isfinite(scale) or scale <= 0:
        raise NumericalError(
            f"layer {layer}: no scale can be estimated ({scale}); a sequence has nothing but zeros on one side of it. "
            "Look at the calibration data, or use --compensation none."
        )
    return Seam(scale, dead_channels=int(record.dead_channels.sum()))
