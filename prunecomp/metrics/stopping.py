"""When enough sequences have been seen to know which candidate is the lowest."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch

LOOKS = 8
"""Into how many shards a calibration set is cut for an early stop, and so how often at most a round looks."""

FEWEST = 16
"""Sequences below which no round ends: the bound rests on means being nearly normal."""


def separated(sums: torch.Tensor, population: int, confidence: float) -> bool:
    """Whether the lowest total is that of the whole calibration set, at ``confidence`` for the round.

    ``sums`` [n, C] holds each candidate's sum over the tokens of each of the n sequences seen so far, of
    ``population`` in all. The bound is a paired, one-sided Student t for the mean difference of the lowest to each
    other candidate, with the finite-population correction ``1 - n / population`` (the set is sampled without
    replacement, and the full run's choice, not the truth about all text, is what is promised), at the level
    ``(1 - confidence) / (C - 1) / LOOKS``: Bonferroni over the candidates and over the looks.

    It assumes that sequences come in random order (with ``--confidence`` they are shuffled) and that the mean of n
    differences is nearly normal, for which at least :data:`FEWEST` are asked. It does not assume independence of
    candidates, equal variances, or equal lengths.
    """
    n, candidates = sums.shape
    if n >= population or candidates < 2:
        return True
    if n < FEWEST:
        return False
    totals = sums.sum(dim=0)
    lowest = int(totals.argmin())
    differences = sums - sums[:, lowest : lowest + 1]
    others = torch.arange(candidates) != lowest
    means, deviations = differences[:, others].mean(dim=0), differences[:, others].std(dim=0)
    level = (1.0 - confidence) / (candidates - 1) / LOOKS
    margin = student_quantile(1.0 - level, n - 1) * deviations * math.sqrt((1.0 - n / population) / n)
    return bool((means > margin).all())


def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t, expanded around the normal one in 1 / degrees (Abramowitz and Stegun, 26.7.5).

    Within a thousandth of the exact one for 15 degrees of freedom or more and probabilities up to 1 - 1e-6.
    """
    z = NormalDist().inv_cdf(probability)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / degrees + g2 / degrees**2 + g3 / degrees**3 + g4 / degrees**4
