"""What the report says of a run to a target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.testing import assert_array_equal

import prunecomp
from prunecomp.report import drawing
from prunecomp.report.figures import Panel, draw_target
from prunecomp.report.page import Facts, Grid, Picture
from prunecomp.report.target import target_section
from prunecomp.report.writing import report_of
from tests.models import build, draw_tokens
from tests.report.records import HOSTILE, target_of


def shown(record: dict[str, Any]) -> tuple[dict[str, object], Grid]:
    facts, picture, grid = target_section(record).blocks
    assert isinstance(facts, Facts)
    assert isinstance(picture, Picture)
    assert isinstance(grid, Grid)
    return dict(facts.pairs), grid


def record_of(target: dict[str, Any] | None, gone: int = 2) -> dict[str, Any]:
    return {"num_layers": 29, "removed": list(range(gone)), "target": target}


def test_a_run_is_told_gate_by_gate(tmp_path: Path, generator: torch.Generator) -> None:
    """What the result holds stands in the table, and the model with the last row that held was written."""
    model = build("llama", num_hidden_layers=8)
    tokens, text = draw_tokens(model, generator), draw_tokens(model, generator)
    kls = [
        result.quality[1].agreement.kl.value
        for result in prunecomp.curve(model, "1-3", tokens, eval=text, repair="none")
        if result.quality[1].agreement
    ]
    limit = f"kl={(kls[1] + kls[2]) / 2:.6f}"
    found = prunecomp.prune(model, target=limit, calibration=tokens, eval=text, repair="none")
    out = found.save(tmp_path / "out", verify=False)
    facts, grid = shown(json.loads((out / "prunecomp.json").read_text(encoding="utf-8")))
    column = list(grid.headings).index(limit)
    assert [row[column] for row in grid.rows] == [f"{kl:,.4g}" for kl in kls]
    assert [row[0] for row in grid.rows] == ["1", "2", "3"]
    assert [row[-1] for row in grid.rows] == ["held", "taken", f"breaks {limit}"]
    assert {row for row, _ in grid.best} == {1}
    assert len(found.removed) == 2
    assert facts["ended by"] == f"kl {kls[2]:,.4g} with 3 removed"
    assert facts["the last that held"] == f"2 of 8 layers removed: kl {kls[1]:,.4g}"
    report = report_of(out)
    assert report.index("<bdi>Layers</bdi>") < report.index("<bdi>Target</bdi>") < report.index("<bdi>Rounds</bdi>")


def test_limits_goals_and_scores_are_told_apart() -> None:
    target = target_of()
    facts, grid = shown(record_of(target))
    assert facts["the dense model solves"] == "task:copy 94.0%"
    assert (facts["goals"], facts["limits"]) == ("none", "perplexity=1.5x, agreement=75%, task:copy=-5%")
    assert facts["ended by"] == "perplexity not finite, agreement 0.3, task:copy -50.0% with 3 removed"
    assert list(grid.headings) == ["removed", *target["asked"], "layers", ""]
    assert list(grid.rows[1]) == ["2", "1.4", "0.8", "-4.0%", "26", "taken"]
    target["asked"] = ["layers=26", *target["asked"]]
    target["gates"][0]["missed"] = ["layers=26"]
    facts, grid = shown(record_of({**target, "gates": target["gates"][:2]}))
    assert (facts["goals"], facts["ended by"]) == ("layers=26", "all goals being reached")
    assert [row[-1] for row in grid.rows] == ["held; not yet layers=26", "taken"]
    facts, _ = shown(record_of({**target_of(), "gates": target_of()["gates"][:2]}))
    assert facts["ended by"] == "no further layer being free to go"


def test_points_stand_beside_their_limit() -> None:
    panels = [
        Panel("perplexity=2x", [(0, 1.0), (1, 1.5), (2, 30.0)], 2.0, {2}),
        Panel("kl=0.2", [(0, 0.0), (1, 0.1), (2, float("nan"))], 0.2, {2}),
    ]
    figure = drawing.new_figure(4, 3)
    draw_target(figure, panels, 1)
    for axes, panel in zip(figure.axes, panels, strict=True):
        points, limit, taken = axes.get_lines()
        assert_array_equal(points.get_xydata(), panel.points)
        assert set(limit.get_ydata()) == {panel.limit}
        assert set(taken.get_xdata()) == {1}
        assert axes.collections[0].get_offsets().data[:, 0].tolist() == [2.0]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]


def test_no_target_has_no_section_and_what_is_none_is_refused() -> None:
    assert target_section({}).blocks == []
    assert target_section(record_of(None)).blocks == []
    with pytest.raises(ValueError, match="speed=2x"):
        target_section(record_of({**target_of(), "asked": ["speed=2x"]}))


def test_a_hostile_name_is_one_more_column() -> None:
    _, grid = shown(record_of(target_of(*HOSTILE)))
    assert list(grid.headings)[5:-1] == HOSTILE
    assert {cell for row in grid.rows for cell in row[5:-1]} == {"0.123"}
