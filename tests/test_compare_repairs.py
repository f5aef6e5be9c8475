"""Arms that repair: each cell is the separate run's, and what differs in the repair alone shares its loop."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.compare import Arm, Comparison, grid
from prunecomp.compare import plan as plans
from prunecomp.compare.arms import PRESETS, USUAL, arms_of
from prunecomp.engine.streams import BOUNDARIES
from prunecomp.errors import FoldError, OptionError
from prunecomp.io.plain import json_text, parse_json
from prunecomp.model.decoder import Decoder
from prunecomp.options import CompareOptions
from prunecomp.repair import RIDGE, demand_of
from prunecomp.report.comparison import csv_text, markdown
from tests.engine.test_streaming import needed, shape_of
from tests.families.test_families import build as build_family
from tests.models import build, draw_tokens
from tests.test_compare import choices, counting, interrupted, watch_states

LAYERS, COUNTS = 12, [1, 3]
ARMS = [
    Arm("bi", "none"),
    Arm("bi", "none", repair="joint"),
    Arm("bi", "none", repair="refit", ridge=3.0),
    Arm("bi", "none", repair="auto"),
    Arm("bi", "scale", repair="joint"),
    Arm("bi", "scale", repair="auto"),
]
OTHERS = [
    Arm("bi", "none", one_shot=True, repair="refit"),
    Arm("span", "none", one_shot=True, repair="joint"),
    Arm("taylor", "none", repair="refit"),
    Arm("ppl", "lsq", repair="joint"),
    Arm("bi", "search", repair="refit"),
    Arm("bi", "none", repair="map"),
]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(21)
    return build("llama", num_hidden_layers=LAYERS)


@pytest.fixture
def calibration(model: Any) -> torch.Tensor:
    return draw_tokens(model, torch.Generator().manual_seed(22), windows=8)


@pytest.fixture
def texts(model: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(23)
    return {"one": draw_tokens(model, generator, windows=3), "two": draw_tokens(model, generator, 10, seqlen=16)}


def equals_separate_runs(result: Comparison, model: Any, calibration: Any, texts: Any) -> None:
    """To the bit: what went, what was fitted and seen, and the perplexities."""
    for one in result.measurements:
        arm = one.arm
        for name, text in texts.items():
            run = prunecomp.prune(
                model, one.layers, calibration, eval=text, metric=arm.metric, compensation=arm.compensation,  # type: ignore[arg-type]
                one_shot=arm.one_shot, repair=arm.repair, ridge=arm.ridge,  # type: ignore[arg-type]
            )  # fmt: skip
            assert (one.removed, one.scales) == (run.removed, [each.scale for each in run.rounds]), arm
            assert run.perplexity == {"dense": result.dense[name], "pruned": one.perplexity[name]}, arm
            if arm.repair == "none":
                assert one.repair is None
                continue
            assert one.repair is not None
            assert run.repair is not None
            assert replace(one.repair, seconds=0.0) == replace(run.repair, seconds=0.0), arm
            if arm.metric == "bi" and arm.compensation in ("none", "scale"):  # others read states, more of them here
                assert one.layer_forwards + one.repair.layer_forwards == run.layer_forwards, arm


@pytest.mark.parametrize("arms", [ARMS, OTHERS], ids=["arms", "others"])
def test_a_cell_is_that_of_a_separate_run_to_the_bit(
    model: Any, calibration: torch.Tensor, texts: dict[str, torch.Tensor], arms: list[Arm]
) -> None:
    calls = counting(model)
    result = prunecomp.compare(model, COUNTS, calibration, eval=texts, arms=arms)
    assert sum(calls) == result.window_forwards
    assert result.arms == arms
    equals_separate_runs(result, model, calibration, texts)


@pytest.mark.parametrize("repair", ["refit", "joint", "auto"])
def test_behind_post_norms_too(repair: str, generator: torch.Generator) -> None:
    model = build_family("gemma3")
    calibration, text = draw_tokens(model, generator, windows=6), draw_tokens(model, generator, windows=3)
    arms = [Arm("bi", "none"), Arm("bi", "none", repair=repair)]
    result = prunecomp.compare(model, [1, 2], calibration, eval={"text": text}, arms=arms)
    equals_separate_runs(result, model, calibration, {"text": text})
    plain, fitted = (result.measurement(arm, 2) for arm in arms)
    assert plain is not None
    assert fitted is not None
    if repair != "auto":
        assert fitted.perplexity != plain.perplexity


def test_arms_that_differ_in_the_repair_share_their_loop(
    model: Any, calibration: torch.Tensor, texts: dict[str, torch.Tensor]
) -> None:
    """What is run beside the loop: each fit, and its model on each text from the layer below the lowest gap on."""
    plain = prunecomp.compare(model, COUNTS, calibration, eval=texts, arms=ARMS[:1])
    both = prunecomp.compare(model, COUNTS, calibration, eval=texts, arms=ARMS[:2])
    beside = 0.0
    for count in COUNTS:
        bare, repaired = (both.measurement(arm, count) for arm in ARMS[:2])
        assert bare is not None
        assert repaired is not None
        assert repaired.repair is not None
        assert (bare.removed, bare.layer_forwards) == (repaired.removed, repaired.layer_forwards)
        assert bare.perplexity != repaired.perplexity
        beside += repaired.repair.layer_forwards * len(calibration)
        lowest = max(min(repaired.removed) - 1, 0)
        beside += sum(len(text) for text in texts.values()) * (LAYERS - count - lowest)
    assert both.window_forwards == plain.window_forwards + beside
    work = both.work[1]
    assert work.repair_layer_forwards == sum(m.repair.layer_forwards for m in both.measurements if m.repair)
    assert work.repair_seconds > 0
    assert (work.layer_forwards, both.work[0].repair_layer_forwards) == (both.work[0].layer_forwards, 0)


def test_a_fit_that_two_loops_come_to_is_done_once(model: Any, calibration: torch.Tensor) -> None:
    """The same layers gone, with and without seams: a fit leaves out what stood in them."""
    arms = [Arm("given", compensation, repair="refit") for compensation in ("none", "scale")]
    options: dict[str, Any] = {"eval": {"one": calibration}, "given": [3]}
    alone = prunecomp.compare(model, [1], calibration, arms=arms[:1], **options)
    both = prunecomp.compare(model, [1], calibration, arms=arms, **options)
    assert both.measurements[0].perplexity == both.measurements[1].perplexity
    assert both.window_forwards == alone.window_forwards
    assert both.work[0].repair_layer_forwards == both.work[1].repair_layer_forwards > 0


@pytest.mark.parametrize("boundaries", [BOUNDARIES, 9, 18])
def test_streamed_it_is_the_same_and_memory_is_not_exceeded(
    model: Any, calibration: torch.Tensor, texts: dict[str, torch.Tensor], boundaries: int,
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base = saved(model)
    plain = prunecomp.compare(base, COUNTS, calibration, eval=texts, arms=ARMS)
    held, rooms = watch_states(monkeypatch)
    limit = limited(model, calibration, boundaries)
    streamed = prunecomp.compare(base, COUNTS, calibration, eval=texts, arms=ARMS, device_memory=limit)
    (placement,) = rooms
    assert placement.group_size == 1
    assert placement.kept_boundaries == boundaries
    assert choices(streamed) == choices(plain)
    assert max(held) <= (boundaries + 1) * calibration.numel() * model.config.hidden_size * 4


def limited(model: Any, calibration: torch.Tensor, boundaries: int) -> int:
    """Bytes for a streamed run with a fit, and so many boundaries."""
    return needed(model, calibration, boundaries, demand_of(Decoder(model), shape_of(model), "joint"))


def test_memory_without_room_for_a_fit_is_refused_before_any_work(
    model: Any, calibration: torch.Tensor, saved: Callable[..., Path]
) -> None:
    limit = limited(model, calibration, BOUNDARIES - 1)
    options: dict[str, Any] = {"eval": {"one": calibration}, "device_memory": limit}
    with pytest.raises(OptionError, match="--repair needs room for 4 boundaries"):
        prunecomp.compare(saved(model), [1], calibration, arms=ARMS[:2], **options)
    prunecomp.compare(saved(model), [1], calibration, arms=ARMS[:1], **options)


@pytest.mark.parametrize("at", [2, 4, 6])
def test_a_comparison_that_was_cut_off_goes_on(
    model: Any, calibration: torch.Tensor, texts: dict[str, torch.Tensor], at: int
) -> None:
    options: dict[str, Any] = {"eval": texts, "arms": ARMS}
    whole = prunecomp.compare(model, COUNTS, calibration, **options)
    earlier = interrupted(at, model, COUNTS, calibration, **options)
    resumed = prunecomp.compare(model, COUNTS, calibration, earlier=earlier, **options)
    assert choices(resumed) == choices(whole)
    assert [one.repair_layer_forwards for one in resumed.work] == [one.repair_layer_forwards for one in whole.work]


def test_what_a_repair_did_comes_back_from_json_and_is_shown(
    model: Any, calibration: torch.Tensor, texts: dict[str, torch.Tensor]
) -> None:
    found = prunecomp.compare(model, [2], calibration, eval=texts, arms=ARMS[1:4])
    again = Comparison.from_record(parse_json(json_text(found.record()), "it", OptionError))
    assert again.measurements == found.measurements
    assert again.work == found.work
    shown = markdown(found)
    assert all(f"| {arm.name} |" in shown for arm in ARMS[1:4])
    judged = found.measurements[-1]
    assert judged.repair is not None
    assert f"| {ARMS[3].name} | {judged.repair.taken} |" in shown
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))[2::2]
    assert [(row["repair"], row["ridge"]) for row in rows] == [("joint", "1.0"), ("refit", "3.0"), ("auto", "1.0")]
    for row, one in zip(rows, found.measurements, strict=True):
        assert one.repair is not None
        assert row["taken"] == one.repair.taken
        assert float(row["repair_layer_forwards"]) == one.repair.layer_forwards
        assert float(row["repair_seconds"]) == one.repair.seconds


def test_of_routed_experts_alone_a_fit_is_refused_by_name_and_auto_does_without(generator: torch.Generator) -> None:
    model = build_family("mixtral")
    tokens = draw_tokens(model, generator)
    calls: list[Any] = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(OptionError, match=r"^bi \+ joint, iterative: --repair joint: .* has no matrix to fit"):
        prunecomp.compare(model, [1], tokens, eval={"x": tokens}, arms=[ARMS[0], ARMS[1]])
    assert not calls
    result = prunecomp.compare(model, [1], tokens, eval={"x": tokens}, arms=[ARMS[3]])
    assert result.measurements[0].repair is not None
    assert result.measurements[0].repair.gaps == [] or result.measurements[0].repair.gaps[0].fitted == []


def test_where_prune_refuses_auto_a_comparison_has_no_new_weights(
    model: Any, calibration: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is exported: a model that cannot be is still compared."""

    def refuse(*_: Any) -> bool:
        raise FoldError("cannot be folded")

    monkeypatch.setattr(plans, "may_replace", refuse)
    with pytest.raises(FoldError, match=r"^bi \+ joint, iterative: cannot be folded"):
        prunecomp.compare(model, [1], calibration, eval={"x": calibration}, arms=ARMS[1:2])
    result = prunecomp.compare(model, [1], calibration, eval={"x": calibration}, arms=ARMS[3:4])
    assert result.measurements[0].repair is not None
    assert set(result.measurements[0].repair.losses) == {"scalar", "none"}


def names(arms: Sequence[Arm]) -> list[str]:
    return [arm.name.removesuffix(", iterative") for arm in arms]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ["bi", "bi + scale", "bi + auto"]),
        ({"ridges": [3.0]}, ["bi", "bi + scale", "bi + auto (ridge 3)"]),
        ({"metrics": ["last"]}, ["last", "last + scale", "last + auto"]),
        ({"compensations": ["none", "lsq"]}, ["bi", "bi + lsq"]),
        ({"repairs": ["none", "joint"]}, ["bi", "bi + joint"]),
        ({"repairs": ["refit", "none"], "ridges": [1.0, 3.0]}, ["bi + refit (ridge 1)", "bi + refit (ridge 3)", "bi"]),
        (
            {"compensations": ["none", "scale"], "repairs": ["none", "joint"], "one_shot": [True]},
            [f"bi{c}{r}, one-shot" for c in ("", " + scale") for r in ("", " + joint")],
        ),
    ],
)
def test_the_arms_of_a_grid(asked: dict[str, Any], expected: list[str]) -> None:
    assert names(arms_of(CompareOptions(**asked), None)) == expected


def test_a_preset_is_repaired_where_that_is_said() -> None:
    table5 = PRESETS["paper-table5"]
    assert {arm.repair for arm in arms_of(CompareOptions(), table5)} == {"none"}
    assert names(arms_of(CompareOptions(repairs=["joint"], one_shot=[False]), table5)) == [
        "bi + joint",
        "bi + scale + joint",
    ]
    with pytest.raises(OptionError, match="--ridges: none of the arms is repaired"):
        arms_of(CompareOptions(ridges=[1.0]), table5)


def test_what_prune_does_by_default_is_among_the_usual_ways(
    model: Any, calibration: torch.Tensor, texts: dict[str, torch.Tensor]
) -> None:
    result = prunecomp.compare(model, [2], calibration, eval=texts)
    assert len(result.arms) == len(USUAL) == 3
    run = prunecomp.prune(model, 2, calibration, eval=texts["one"])
    assert run.perplexity is not None
    assert result.measurements[2].perplexity["one"] == run.perplexity["pruned"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repairs": ["glue"]}, "--repairs glue: choose none, refit, joint, map, auto"),
        ({"ridges": [0]}, "--ridges 0: give a number from 1e-6"),
        ({"compensations": ["scale"], "ridges": 2.0}, "--ridges: none of the arms is repaired"),
        ({"arms": [Arm("bi", "none")], "repairs": ["joint"]}, "repairs: the arms say what is compared already"),
        ({"arms": [Arm("bi", "none", repair="glue")]}, "--repair glue: choose"),
        ({"arms": [Arm("bi", "none", repair="joint"), Arm("bi", "none", ridge=2.0)]}, "bi.*: --ridge 2: --repair none"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    model: Any, calibration: torch.Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        prunecomp.compare(model, [1], calibration, eval={"x": calibration}, **options)


def test_a_ridge_as_text_is_a_number(model: Any, calibration: torch.Tensor) -> None:
    arms = [Arm("bi", "none", repair="refit", ridge=ridge) for ridge in ("1", None)]  # type: ignore[arg-type]
    result = prunecomp.compare(model, [1], calibration, eval={"x": calibration}, arms=arms)
    assert result.arms[0].ridge == RIDGE
    assert result.measurements[0].perplexity == result.measurements[1].perplexity
    assert grid(["bi"], ["none"], repairs=["refit"], ridges=[1.0, None]) == result.arms
