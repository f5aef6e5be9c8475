"""Blocks of neighbouring layers from their formulas, on whole re-runs in float64; nothing of the package.

States are those of :func:`tests.oracles.iterative.boundary_states`: for each sequence a list of M tensors [S, d].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from tests.oracles import iterative

States = list[list[torch.Tensor]]


def cosines(states: States, p: int, q: int) -> list[float]:
    """Of every token of every sequence."""
    return [
        float(x @ y / (x.norm() * y.norm())) for one in states for x, y in zip(one[p].double(), one[q], strict=True)
    ]


def influence(states: States, p: int, q: int) -> float:
    values = cosines(states, p, q)
    return 1.0 - sum(values) / len(values)


def angle(states: States, p: int, q: int) -> float:
    values = [math.acos(max(-1.0, min(1.0, c))) / math.pi for c in cosines(states, p, q)]
    return sum(values) / len(values)


def along_tokens(states: States, p: int, q: int) -> float:
    """One minus the mean, over sequences and channels, of the cosine of a channel's two sequences of values."""
    means = [float(torch.cosine_similarity(one[p], one[q], dim=0).mean()) for one in states]
    return 1.0 - sum(means) / len(means)


def magnitude_scale(states: States, p: int, q: int) -> float:
    ratios = [float((one[q].abs().mean(dim=0) / one[p].abs().mean(dim=0)).mean()) for one in states]
    return sum(ratios) / len(ratios)


def norm_ratio(states: States, p: int, q: int) -> float:
    ratios = [float(one[q].norm(dim=-1).mean() / one[p].norm(dim=-1).mean()) for one in states]
    return sum(ratios) / len(ratios)


def least_squares(states: States, p: int, q: int) -> float:
    x, y = (torch.cat([one[at] for one in states]).flatten().unsqueeze(1) for at in (p, q))
    return float(torch.linalg.lstsq(x, y).solution)


METRICS: dict[str, Callable[[States, int, int], float]] = {"bi": influence, "span": influence, "angular": angle}
SCALES: dict[str, Callable[[States, int, int], float]] = {
    "scale": magnitude_scale,
    "norm": norm_ratio,
    "lsq": least_squares,
}


def prune(
    model: Any,
    sequences: Iterable[torch.Tensor],
    layers: int,
    span: int,
    metric: Callable[[States, int, int], float],
    scale: Callable[[States, int, int], float],
    candidates: set[int],
) -> tuple[list[list[int]], list[float], list[dict[int, float]], Any]:
    """Blocks removed (original indices), the scale and all scores of each round, and the pruned float64 model.

    Blocks of ``span`` while so many are still to go, else of what is left; where none fits, the longest that does.
    """
    work = copy.deepcopy(model).double()
    names = list(range(len(work.model.layers)))
    blocks: list[list[int]] = []
    scales: list[float] = []
    rounds: list[dict[int, float]] = []
    gone = 0
    while gone < layers:
        states = [iterative.boundary_states(work, tokens) for tokens in sequences]
        for n in range(min(span, layers - gone), 0, -1):
            scores = {names[p]: metric(states, p, p + n) for p in range(len(names) - n + 1)}
            whole = {
                first: score
                for first, score in scores.items()
                if set(names[names.index(first) : names.index(first) + n]) <= candidates
            }
            if whole:
                break
        p = names.index(min(whole, key=lambda first: (whole[first], first)))
        block = names[p : p + n]
        blocks.append(block)
        scales.append(scale(states, p, p + n))
        rounds.append(scores)
        remove(work, names, block, scales[-1])
        gone += n
    return blocks, scales, rounds, work


def remove(work: Any, names: list[int], block: list[int], scale: float) -> None:
    for layer in reversed(block[1:]):
        iterative.remove(work, names, layer, 1.0)
    iterative.remove(work, names, block[0], scale)
