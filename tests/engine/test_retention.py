"""The choice of kept boundaries against brute force."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecomp.engine.retention import choose_boundaries, expected_recomputation, removal_odds


def by_hand(kept: tuple[int, ...], odds: list[float]) -> float:
    return sum(chance * (p - max(k for k in (0, *kept) if k <= p)) for p, chance in enumerate(odds))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8),
    st.sets(st.integers(0, 8)),
    st.integers(0, 8),
)
def test_no_other_set_recomputes_less(odds: list[float], available: set[int], budget: int) -> None:
    chosen = choose_boundaries(odds, sorted(available), budget)
    allowed = [p for p in available if 0 < p < len(odds)]
    assert set(chosen) <= set(allowed)
    assert len(chosen) <= budget
    sets = [kept for size in range(min(budget, len(allowed)) + 1) for kept in combinations(sorted(allowed), size)]
    assert by_hand(tuple(chosen), odds) == pytest.approx(min(by_hand(kept, odds) for kept in sets), abs=1e-9)
    assert expected_recomputation(chosen, odds) == pytest.approx(by_hand(tuple(chosen), odds), abs=1e-12)


def test_a_budget_for_all_keeps_every_boundary_that_may_be_cut() -> None:
    assert choose_boundaries([0.1] * 6, range(1, 6), 99) == [1, 2, 3, 4, 5]


def test_the_likely_cuts_are_kept_first() -> None:
    odds = removal_odds({0: 0.9, 1: 0.8, 2: 0.1, 3: 0.7, 4: 0.2}, [0, 1, 2, 3, 4])
    assert odds[2] > odds[4] > odds[3] > odds[1] > odds[0]
    assert sum(odds.values()) == pytest.approx(1.0)
    assert choose_boundaries([odds[p] for p in range(5)], range(1, 5), 1) == [2]


def test_odds_without_scores_are_even() -> None:
    assert removal_odds({}, [3, 5]) == {3: 0.5, 5: 0.5}
