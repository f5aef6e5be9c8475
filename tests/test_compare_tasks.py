"""Tasks of lm-eval in a comparison: what as many runs of prune say, each model asked once, and shown."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.checkpoint.export import check_export
from prunecomp.compare import Arm, Comparison
from prunecomp.errors import FoldError, JournalError, OptionError
from prunecomp.evaluation import profile
from prunecomp.evaluation.tasks import MEAN
from prunecomp.io.plain import json_text, parse_json
from prunecomp.report.compared import comparison_sections
from prunecomp.report.comparison import csv_text, markdown
from prunecomp.report.page import Grid
from prunecomp.report.plots import task_points
from tests.asking import heard
from tests.command_line import invoke

__all__ = ["heard"]

ARMS = [
    Arm("last", "none"),
    Arm("bi", "scale"),
    Arm("last", "none", repair="joint"),
    Arm("last", "none", repair="auto"),
]
TOKENS = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(3))
OPTIONS: dict[str, Any] = {"tasks": "one,two", "limit": 8, "dtype": "float32"}


def test_scores_are_those_of_prune_and_each_model_is_asked_once(
    reference_model: Path, heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prunecomp.compare(reference_model, [2], TOKENS, eval={"own": TOKENS}, arms=ARMS, **OPTIONS)
    auto = found.measurement(ARMS[3], 2)
    assert auto is not None
    assert auto.repair is not None
    # What auto takes is one of the other arms', or a way of its own.
    own = [14] * (auto.repair.taken not in ("none", "joint, ridge 1"))
    assert heard == [16, 14, 14, 14, *own]
    monkeypatch.setattr(profile, "MAKERS", {})
    monkeypatch.setattr(profile, "PROMPTS", profile.PROMPTS[:1])
    for one in found.measurements[:3]:
        arm = one.arm
        run = prunecomp.prune(
            reference_model, one.layers, TOKENS, metric=arm.metric, compensation=arm.compensation,
            repair=arm.repair, **OPTIONS,
        )  # fmt: skip
        assert run.profile is not None
        assert run.profile.models[0].tasks == found.dense_tasks
        assert run.profile.models[1].tasks == one.tasks
    assert [one.task for one in found.dense_tasks] == [MEAN, "one", "one", "two", "two"]
    assert len({tuple(score.score for score in one.tasks) for one in found.measurements}) > 1, "they do not differ"
    again = Comparison.from_record(parse_json(json_text(found.record()), "it", JournalError))
    assert (again.measurements, again.dense_tasks) == (found.measurements, found.dense_tasks)
    _shown(found)


def _shown(found: Comparison) -> None:
    last = found.measurements[-1]
    cell = f"{last.tasks[0].score:.3f} ({last.tasks[0].retained:.0%})"
    assert f"| {last.arm.name} | {last.layers} | {cell} |" in markdown(found)
    assert "one, two, examples as each has them, the first 8 questions of each" in markdown(found)
    rows = [row for row in csv.DictReader(io.StringIO(csv_text(found))) if row["task"] == "two"]
    assert len(rows) == 2 * (1 + len(found.measurements))
    assert {row["text"] + row["perplexity"] for row in rows} == {""}
    assert float(rows[-2]["score"]) == last.tasks[3].score
    (section,) = (one for one in comparison_sections(found) if one.title.startswith("Tasks"))
    (grid,) = (block for block in section.blocks if isinstance(block, Grid))
    assert [row[1] for row in grid.rows] == ["0", *["2"] * len(ARMS)]
    assert task_points(found, 0)[last.arm.name][-1] == (2.0, last.tasks[0].score)


def test_the_command_writes_them_and_goes_on_with_the_same_alone(
    reference_model: Path, heard: list[int], tmp_path: Path
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text((reference_model / "evaluation.txt").read_text()[:2000])
    words = [
        "compare", reference_model, "--layers", "1,2", "--calibration", text, "--samples", "2", "--seqlen", "32",
        "--eval", f"own={text}", "--metrics", "last", "--compensations", "none", "--out", out,
        "--no-report", "--dtype", "float32",
    ]  # fmt: skip
    asked = invoke(*words, "--tasks", "one,two", "--limit", "4")
    assert asked.exit_code == 0, asked.output
    assert "tasks of lm-eval" in asked.stdout
    assert (out / "tasks.png").is_file()
    record = json.loads((out / "comparison.json").read_text())
    assert record["identity"]["tasks"] == {"names": ["one", "two"], "shots": None, "limit": 4}
    assert [len(one["tasks"]) for one in record["measurements"]] == [5, 5]
    assert heard == [16, 15, 14]
    other = invoke(*words, "--tasks", "one", "--resume")
    assert other.exit_code != 0
    assert "another comparison: tasks.limit was 4" in " ".join(other.stderr.split())
    same = invoke(*words, "--tasks", "one,two", "--limit", "4", "--resume")
    assert same.exit_code == 0, same.output
    assert heard == [16, 15, 14], "what is there is asked again"


def test_what_cannot_be_asked_is_told_before_the_work(
    reference_model: Path, heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prunecomp.pruning.session.Session, "load", lambda *_, **__: pytest.fail("work was begun"))

    def compare(**more: Any) -> None:
        prunecomp.compare(
            reference_model, [1], TOKENS, **{"eval": {"own": TOKENS}, "arms": ARMS[:2], **OPTIONS, **more}
        )

    with pytest.raises(OptionError, match=r"--tasks one,two: .*streamed"):
        compare(device_memory=20_000_000)
    with pytest.raises(OptionError, match=r"--limit 8.*no --tasks"):
        compare(tasks=None)

    def refuse(*arguments: Any) -> None:
        check_export(*arguments)
        raise FoldError("no fold")

    monkeypatch.setattr("prunecomp.pruning.session.check_export", refuse)
    with pytest.raises(FoldError, match="last, iterative: no fold"):
        compare()
