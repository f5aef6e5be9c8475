"""Which boundaries of the residual stream to keep, when not all of them fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache


def removal_odds(scores: Mapping[int, float], candidates: Sequence[int]) -> dict[int, float]:
    """How likely each layer is to go next, from the last scores: halved with each rank, ties in favour of the lower.

    Ranks serve every metric alike, whatever the unit of its scores; without scores all candidates are equally likely.
    """
    if not candidates:
        return {}
    ranked = sorted((layer for layer in candidates if layer in scores), key=lambda layer: (scores[layer], layer))
    if not ranked:
        return dict.fromkeys(candidates, 1.0 / len(candidates))
    weights = {layer: 0.5**rank for rank, layer in enumerate(ranked)}
    total = sum(weights.values())
    return {layer: weight / total for layer, weight in weights.items()}


def expected_recomputation(kept: Sequence[int], odds: Sequence[float]) -> float:
    """Layer-forwards that the next round is expected to spend below its cut: the distance from the cut down to the
    nearest kept boundary. ``odds[p]`` is the chance that position p is cut; boundary 0, the embedding, is always there.
    """
    stored = set(kept) | {0}
    nearest, expected = 0, 0.0
    for p, chance in enumerate(odds):
        nearest = p if p in stored else nearest
        expected += chance * (p - nearest)
    return expected


def choose_boundaries(odds: Sequence[float], available: Sequence[int], budget: int) -> list[int]:
    """The at most ``budget`` positions among ``available`` that make :func:`expected_recomputation` least.

    Dynamic programming over positions from the bottom up: a cut between two neighbouring kept boundaries pays the
    distance to the lower one, so the best set splits into the best set up to a boundary and what lies above it.
    O(positions^2 * budget). Among equals the smaller set is taken, then the lower positions.
    """
    total = len(odds)
    stops = sorted({p for p in available if 0 < p < total})
    budget = min(budget, len(stops))
    if budget <= 0:
        return []
    weight, moment = [0.0], [0.0]  # prefix sums of odds[p] and of p * odds[p]
    for p, chance in enumerate(odds):
        weight.append(weight[-1] + chance)
        moment.append(moment[-1] + p * chance)

    def paid(low: int, high: int) -> float:
        """Expected recomputation of cuts in low..high-1 when the boundary at ``low`` is the nearest kept."""
        return (moment[high] - moment[low]) - low * (weight[high] - weight[low])

    nodes = [0, *stops]
    # best[k][i]: least cost of all cuts below nodes[i] with k boundaries kept, the last of them nodes[i].
    best: list[dict[int, tuple[float, int]]] = [{0: (0.0, -1)}]
    for _ in range(budget):
        row: dict[int, tuple[float, int]] = {}
        for i in range(1, len(nodes)):
            row[i] = min(
                ((best[-1][j][0] + paid(nodes[j], nodes[i]), j) for j in best[-1] if j < i), default=(float("inf"), -1)
            )
        best.append(row)
    finals = [
        (cost + paid(nodes[i], total), k, i)
        for k, row in enumerate(best)
        for i, (cost, _) in row.items()
        if cost != float("inf")
    ]
    least = min(final[0] for final in finals)
    _, k, i = min((final for final in finals if final[0] <= least + 1e-12), key=lambda final: (final[1], final[2]))
    chosen: list[int] = []
    while k > 0:
        chosen.append(nodes[i])
        i = best[k][i][1]
        k -= 1
    return sorted(chosen)


def reversal(base: int, lowest: int, top: int, slots: int) -> list[int]:
    """Which positions to store, at most ``slots`` (1 or more), on the way from ``base`` up to ``top``, when all from
    ``top`` down to ``lowest`` are then wanted one after the other, and one that is done with makes room for another.

    ``base`` is stored beside them. What lies between two stored positions is run again when its turn comes: with s
    slots at most once for some s * s / 2 positions, and never more often than it has to be (binomial checkpointing:
    Griewank and Walther, ACM TOMS 26, 2000).
    """
    if lowest > base and lowest < top and slots > 1:  # what is below the lowest is passed once, and not come back to
        return [lowest, *reversal(lowest, lowest, top, slots - 1)]
    positions = []
    while base < top:
        _, step = _reversed(top - base, slots)
        base, slots = base + step, slots - 1
        positions.append(base)
    return positions


@cache
def _reversed(steps: int, slots: int) -> tuple[int, int]:
    """The fewest layer-forwards that bring ``steps`` states by one after the other, the highest first, and how far up
    the first one to be stored lies."""
    if slots >= steps:
        return steps, 1
    if slots == 1:
        return steps * (steps + 1) // 2, steps
    return min(
        (step + _reversed(steps - step, slots - 1)[0] + _reversed(step - 1, slots)[0], step)
        for step in range(1, steps + 1)
    )
