"""The bootstrap, against drawing again in the plainest way."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from prunecomp.metrics.bootstrap import (
    DRAWS,
    LEVEL,
    choice_certainty,
    draws,
    paired_difference,
    score_intervals,
)
from tests.seeds import seed


def drawn_again(count: int, times: int, random: Random) -> list[list[int]]:
    return [[random.randrange(count) for _ in range(count)] for _ in range(times)]


def test_each_draw_is_as_large_as_the_set() -> None:
    drawn = draws(7, seed())
    assert drawn.shape == (DRAWS, 7)
    assert (drawn.sum(axis=1) == 7).all()
    # The mean of 2,000 binomials of variance 6 / 7 is 1 up to five times its standard error of 0.021.
    assert drawn.mean(axis=0) == pytest.approx(1, abs=0.11)
    assert (draws(7, 3) == draws(7, 3)).all()
    assert (draws(7, 3) != draws(7, 4)).any()


def test_the_probability_of_a_choice_is_that_of_plain_resampling() -> None:
    """Three candidates over 12 sequences of unequal length, two of them close."""
    random = np.random.default_rng(seed())
    tokens = random.integers(5, 20, 12).astype(np.float64)
    sums = tokens[:, None] * (np.array([1.0, 1.03, 1.4]) + 0.1 * random.standard_normal((12, 3)))
    means = sums.sum(axis=0) / tokens.sum()
    chosen = int(means.argmin())
    found = choice_certainty([4, 7, 9], sums, tokens, [4, 7, 9][chosen], seed())
    rows = drawn_again(12, 4000, Random(seed()))
    scores = np.array([sums[row].sum(axis=0) / tokens[row].sum() for row in rows])
    share = float((scores.argmin(axis=1) == chosen).mean())
    # Two shares of 2,000 and 4,000 draws: five standard errors of their difference.
    assert found.probability == pytest.approx(share, abs=5 * math.sqrt(0.25 / 2000 + 0.25 / 4000))
    assert 0.5 < found.probability <= 1
    second = int(np.argsort(means)[1])
    assert found.runner_up == [4, 7, 9][second]
    assert found.margin == pytest.approx(means[second] - means[chosen])
    assert found.margin_interval is not None
    low, high = np.quantile(scores[:, second] - scores[:, chosen], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    width = high - low
    assert found.margin_interval.low == pytest.approx(low, abs=0.15 * width)
    assert found.margin_interval.high == pytest.approx(high, abs=0.15 * width)


def test_a_tie_goes_to_the_lower_layer_in_every_draw() -> None:
    sums = np.ones((6, 3))
    assert choice_certainty([9, 2, 5], sums, np.ones(6), 2, 0).probability == 1.0
    assert choice_certainty([9, 2, 5], sums, np.ones(6), 9, 0).probability == 0.0


def test_a_sole_candidate_is_certain() -> None:
    found = choice_certainty([3], np.ones((4, 1)), np.ones(4), 3, 0)
    assert (found.probability, found.runner_up, found.margin, found.margin_interval) == (1.0, None, None, None)
    assert found.fields()["margin_interval"] == []


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """95 % intervals from 40 sequences hold the true mean in some 93 % of 300 sets (the percentile bootstrap of a mean
    is a little narrow: t against normal, and n - 1 against n); five standard errors of that are 7 %."""
    random = np.random.default_rng(seed())
    held = 0
    for number in range(300):
        sums = 2.0 + random.standard_normal((40, 1))
        one = score_intervals([0], sums, np.ones(40), number)[0]
        held += one.low <= 2.0 <= one.high
    assert 0.86 <= held / 300 <= 0.99


def test_a_paired_interval_sees_a_difference_that_scores_alone_do_not_show() -> None:
    """Of 100 problems one model solves 60 and another five fewer, all of them among the 60."""
    first = [1.0] * 60 + [0.0] * 40
    second = [1.0] * 55 + [0.0] * 45
    found = paired_difference(first, second, seed())
    assert found.high < 0  # apart, each is known to 5 %: nothing could be said
    assert found.low == pytest.approx(-0.05 - 1.96 * math.sqrt(0.05 * 0.95 / 100), abs=0.02)
    assert paired_difference(first, first, 0).low == paired_difference(first, first, 0).high == 0
