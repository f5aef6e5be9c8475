"""The benchmarks of growth and of an early stop: what they make of runs, and that what they simulate is what runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import busy, growth_run
from benchmarks.early_stop import Course, Models, checked, course, needed, outcomes, stack_of, summary
from benchmarks.growth import budgeted, draw, exponents, markdown, points, rows_of
from benchmarks.growth_run import ORDER, Point, measure, order_of
from prunecomp.data.windows import Windows
from prunecomp.engine.placement import Memory, model_shape, place
from prunecomp.metrics.stopping import LOOKS, separated
from prunecomp.model.decoder import Decoder
from prunecomp.pruning.pruner import Pruner
from tests.models import build, draw_tokens


def run_of(seconds: float, nbytes: float = 1.0, flops: float = 1.0) -> dict[str, float]:
    return {
        "seconds": seconds, "peak_bytes": nbytes, "flops": flops, "weights": 1e6, "layer_forwards": 1,
        "planned_bytes": 1, "processor_seconds": seconds,
    }  # fmt: skip


def windows_of(*runs: tuple[int, dict[str, float]]) -> list[tuple[Point, dict[str, float]]]:
    return [(Point("windows", 6, 2, windows, 64), run) for windows, run in runs]


def test_exponents_are_those_of_power_laws() -> None:
    rows = rows_of(windows_of(*((n, run_of(3 * n**1.5, 5 * n**0.25, n)) for n in (8, 32, 128))))
    found = exponents(rows)
    assert [(one["from"], one["to"]) for one in found] == [(8, 32), (32, 128)]
    for one in found:
        assert [one["seconds"], one["peak_bytes"], one["flops"]] == pytest.approx([1.5, 0.25, 1.0])
        assert (one["seconds_above_linear"], one["peak_bytes_above_linear"]) == ("surely", "no")


def test_a_curve_is_surely_above_linear_where_no_repeat_speaks_against_it() -> None:
    low = [(8, run_of(seconds)) for seconds in (1.0, 1.1, 1.2)]
    for most, verdict in ((2.5, "surely"), (2.3, "perhaps"), (2.15, "no")):  # medians: 1.1 and ``most``
        high = [(16, run_of(seconds)) for seconds in (most, most, most)]
        (found,) = exponents(rows_of(windows_of(*low, *high)))
        assert found["seconds_above_linear"] == verdict


def test_curves_are_not_joined_and_a_budget_is_a_ratio_of_medians() -> None:
    runs = windows_of((8, run_of(1.0))) + [
        (Point("budget", 12, 3, 32, 128, budget=name), run_of(seconds))
        for name, each in {"": (2.0, 4.0, 9.0), "a quarter": (5.0, 1.0, 6.0)}.items() for seconds in each
    ]  # fmt: skip
    rows = rows_of(runs)
    assert exponents(rows) == []
    assert budgeted(rows) == {"a quarter": 5.0 / 4.0}


def test_every_point_can_be_placed_and_a_quarter_streams() -> None:
    order = order_of(18)
    assert sorted(order) == list(range(18))
    assert order_of(30)[: len(ORDER)] == ORDER
    for point in points():
        assert point.removed < point.num_layers
    point = next(point for point in points() if point.series == "budget")
    with torch.device("meta"):
        model = growth_run.build(point.shape, point.num_layers)
    shape, cpu = model_shape(model, Decoder(model).family, torch.float32), torch.device("cpu")
    all_of_it = place(shape, point.windows, point.seqlen, Memory(10**10), cpu)
    assert all_of_it.group_size is None
    quarter = Memory(sum(all_of_it.peak_nbytes.values()) // 4)
    assert place(shape, point.windows, point.seqlen, quarter, cpu).group_size == 1


def test_a_run_is_measured_and_shown() -> None:
    tiny = Point("removed", 4, 1, 2, 16, "warm-up")
    threads = torch.get_num_threads()
    runs = [(point, measure(point, threads)) for point in (tiny, replace(tiny, removed=2))]
    assert [run["layer_forwards"] for _, run in runs] == [4, 4]  # the top layer goes first, nothing is above it
    for _, run in runs:
        assert 0 < run["seconds"] < 60
        assert run["peak_bytes"] >= 0
        assert not run["streamed"]
    runs = [(point, {**run, "peak_bytes": max(run["peak_bytes"], 1)}) for point, run in runs]  # this process is larger
    rows = rows_of(runs)
    result = {"points": rows, "exponents": exponents(rows), "budgeted_over_unbudgeted": {}}
    assert "| removed | 1 | 2 |" in markdown(result)
    assert len(draw(rows).axes) == 2


WINDOWS = 40


def stop_after(sums: torch.Tensor, population: int, confidence: float) -> bool:
    """In place of the rule: all sequences in the first round, fewer in the second, fewest in the third."""
    return len(sums) >= {8: population, 7: 25, 6: 20}[sums.shape[1]]


@pytest.mark.parametrize("rule", [separated, stop_after])
def test_what_is_simulated_is_what_the_engine_does(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, rule: Callable[[torch.Tensor, int, float], bool]
) -> None:
    for module in ("benchmarks.early_stop", "prunecomp.pruning.pruner"):
        monkeypatch.setattr(f"{module}.separated", rule)
    model = build("llama", num_hidden_layers=8)
    windows = Windows(draw_tokens(model, generator, windows=WINDOWS), "")
    pruner = Pruner(Decoder(model), windows)
    models = Models(pruner)
    assert course(models, torch.arange(WINDOWS), 3, len).sequences == (WINDOWS,) * 3
    for seed in range(4):
        order = torch.randperm(WINDOWS, generator=torch.Generator().manual_seed(seed))
        simulated = course(models, order, 3, partial(needed, confidence=0.5))
        real = checked(pruner.decoder, windows.take(order), pruner.placement, 0.5, simulated)
        # Where the first round had every sequence, the second is of the same model too.
        exact = slice(0, 2 if simulated.sequences[0] == WINDOWS else 1)
        for name in ("sequences", "removed"):
            assert real[name][exact] == getattr(simulated, name)[exact]
        assert real["scales"][exact] == pytest.approx(simulated.scales[exact], rel=1e-5)
        assert rule is separated or simulated.sequences == real["sequences"] == (WINDOWS, 25, 20)
    for gone in models.known:  # scored again from the start, in a pruner that has seen nothing else
        other = Pruner(Decoder(model), windows)
        for layer in gone:
            other.remove(layer)
        scores = other.score()
        known = models.known[gone]
        assert sorted(scores) == sorted(known.layers)
        totals = 1 + known.sums.sum(dim=0) / windows.num_tokens
        assert totals.tolist() == pytest.approx([scores[layer] for layer in known.layers], rel=1e-6)


def test_a_round_ends_at_the_first_shard_that_settles_it(generator: torch.Generator) -> None:
    sums = torch.randn(64, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 0.8, 0.8])
    n = needed(sums, 0.9)
    assert n % (64 // LOOKS) == 0
    assert separated(sums[:n], 64, 0.9)
    assert not any(separated(sums[:less], 64, 0.9) for less in range(8, n, 8))
    assert needed(torch.zeros(64, 3, dtype=torch.float64), 0.9) == 64


def test_outcomes_are_counted_against_the_full_run() -> None:
    full = Course((3, 1), (2.0, 1.0), (128, 128))
    courses = [
        Course((3, 1), (2.0, 1.1), (16, 128)),
        Course((3, 1), (2.1, 1.0), (32, 128)),
        Course((1, 3), (1.0, 2.0), (16, 64)),
        Course((3, 2), (1.0, 2.0), (16, 64)),
    ]
    found = summary(courses, full)
    assert (found["sets_differ"], found["orders_differ"]) == (1, 2)
    assert found["sequences"][0]["counts"] == {16: 3, 32: 1}
    assert found["mean_share"] == pytest.approx((80 + 384) / 8 / 128)
    assert found["scales_differ"] == pytest.approx({"median": 0.075, "most": 0.1})
    looked = outcomes({"0.9": courses}, full)
    assert [one for _, one in looked] == [full, courses[0], courses[3]]
    assert looked[2][0] == "0.9, 1 of 4"
    assert stack_of(5, full).alive == (0, 2, 4)


def test_a_fair_share_is_that_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "CORES", 2)
    monkeypatch.setitem(busy.LOADS, "all cores busy", 2)
    two = {"nothing": 1.0, "one core busy": 1.5, "all cores busy": 2.0, "a second run": 2.0}
    one = {"nothing": 1.0, "one core busy": 1.0, "all cores busy": 1.5, "a second run": 1.0}
    for threads, expected in ((2, two), (1, one)):
        assert {load: busy.fair(load, threads) for load in expected} == expected
    seconds = {"one thread": {"nothing": [4.0, 2.0, 3.0], "one core busy": [6.0]}}
    assert busy.rows_of(seconds) == [["one thread", "3.0", "2.00 (1.00)"]]
