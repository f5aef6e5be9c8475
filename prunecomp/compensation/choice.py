"""Compensations that are chosen by what the model then loses."""

from __future__ import annotations

import math
from collections.abc import Callable

from prunecomp.compensation.base import Removal, Seam, put_in_place, wants
from prunecomp.compensation.linear import linear_map
from prunecomp.compensation.none import no_compensation
from prunecomp.compensation.scale import least_squares_scale, magnitude_scale, norm_ratio
from prunecomp.engine.run import Run
from prunecomp.errors import NumericalError

SEARCH_RUNS = 8
"""Suffix runs that a search may spend."""

LARGEST = 2.0
"""A search stays between this scale and its inverse, unless the paper's scale lies outside."""

NARROWEST = 0.02
"""In the logarithm of a scale: points of a search do not lie closer to begin with."""

CHOICES: dict[str, Callable[[Removal], Seam]] = {
    "none": no_compensation,
    "scale": magnitude_scale,
    "norm": norm_ratio,
    "lsq": least_squares_scale,
    "linear": linear_map,
}


@wants(states=True)
def searched_scale(removal: Removal) -> Seam:
    """The scalar of least next-token loss on the calibration windows.

    A search by parabolas in the logarithm of the scale, from no compensation and the paper's scale on: at most
    :data:`SEARCH_RUNS` losses, each of which runs only what lies above the cut. So on the calibration text it is never
    worse than those two.
    """
    run = removal.run
    shards = [number for number, shard in enumerate(run.shards) if shard.stale_from is None] or None

    def loss(position: float) -> float:
        return loss_with(run, removal.block, Seam(math.exp(position)), shards)

    step = math.log(magnitude_scale(removal).scale)
    if abs(step) < NARROWEST:
        step = NARROWEST
    tried = minimise(loss, 0.0, step, SEARCH_RUNS, max(math.log(LARGEST), abs(step)))
    best = min(tried, key=lambda position: (tried[position], abs(position)))
    return Seam(math.exp(best), losses={f"{math.exp(position):.6f}": value for position, value in tried.items()})


def minimise(
    function: Callable[[float], float], first: float, second: float, budget: int, limit: float
) -> dict[float, float]:
    """Values of a function of one variable on the way to its least: from two points downhill until it rises again,
    then by the parabola through the lowest point and its neighbours. At most ``budget`` of them, and beside the first
    two none outside ``limit`` either way."""
    tried = {first: function(first), second: function(second)}
    while len(tried) < budget:
        points = sorted(tried)
        low = min(points, key=lambda point: tried[point])
        i = points.index(low)
        width = points[-1] - points[0]
        inner = min(max(i, 1), len(points) - 2)  # of the three points whose parabola is taken
        at_edge = i in (0, len(points) - 1)
        if len(points) == 2 or (at_edge and abs(low) < limit):
            following = max(-limit, min(limit, low + (width if i else -width)))
        else:
            following = vertex([(point, tried[point]) for point in points[inner - 1 : inner + 2]])
        close = min(abs(following - point) for point in points) < 1e-4 * max(width, NARROWEST)
        if close or not abs(following) <= limit:  # no number, between points that overflow
            break
        tried[following] = function(following)
    return tried


def vertex(points: list[tuple[float, float]]) -> float:
    """Where the parabola through three points has its extreme value; the middle of the outer ones for a line."""
    (a, fa), (b, fb), (c, fc) = points
    right, left = (b - a) * (fb - fc), (b - c) * (fb - fa)
    if right == left:
        return (a + c) / 2
    return b - ((b - a) * right - (b - c) * left) / (2 * (right - left))


@wants(states=True, held_out=True, replaces=True)
def best_of_all(removal: Removal) -> Seam:
    """The one of :data:`CHOICES` that leaves the least loss on the held-out windows, ``none`` included.

    Ties go to the first. One that cannot be estimated here is passed over, and so is the linear repair where the
    family has no matrix for it.
    """
    held_out = removal.held_out
    assert held_out is not None  # the mark has them held out
    for shard in held_out.shards:
        held_out.update(shard)  # so that each trial sets out from the cut
    seams: dict[str, Seam] = {}
    losses: dict[str, float] = {}
    for name, estimate in CHOICES.items():
        if estimate is linear_map and removal.run.decoder.family.mlp_writer is None:
            continue
        try:
            seams[name] = estimate(removal)
        except NumericalError:
            continue
        losses[name] = loss_with(held_out, removal.block, seams[name])
    best = min(losses, key=lambda name: losses[name])
    seam = seams[best]
    return Seam(seam.scale, seam.dead_channels, seam.overlays, chosen=best, losses=losses)


def loss_with(run: Run, block: tuple[int, ...], seam: Seam, shards: list[int] | None = None) -> float:
    """Nats a token once ``block`` is gone and ``seam`` in its place, infinite where values overflow.

    ``run`` stays as it is.
    """
    trial = run.trial()
    put_in_place(trial, block, seam)
    try:
        return trial.loss(keep=False, over=shards)
    except NumericalError:
        return math.inf
