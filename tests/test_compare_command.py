"""The command ``compare``: what it prints and writes, alone, in several processes, and killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunecomp.cli import comparing
from prunecomp.compare import Arm, Comparison
from prunecomp.errors import OutputError
from tests.command_line import invoke as run
from tests.forks import Forks
from tests.killing import Harm
from tests.models import build, draw_tokens
from tests.test_compare import choices


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


def command(folder: Path, tokens: str, out: Path, *more: object) -> list[object]:
    text = folder / f"{tokens}.npy"
    return [
        "compare", folder / "base", "--layers", "1,3", "--calibration", text, "--both-ways", "--eval", f"held={text}",
        "--metrics", "bi,magnitude", "--compensations", "none,scale", "--repairs", "none,joint", "--out", out, *more,
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(11)
    model = build("llama", num_hidden_layers=12)
    calibration = draw_tokens(model, torch.Generator().manual_seed(12), windows=8)
    model.save_pretrained(tmp_path / "base")
    np.save(tmp_path / "short.npy", calibration.numpy())
    np.save(tmp_path / "long.npy", calibration[:3].repeat(1, 60).numpy()[:, :1400])  # two windows to a micro-batch
    return tmp_path


@pytest.mark.slow
def test_two_processes_give_what_one_gives_and_one_writes(folder: Path, forks: Forks) -> None:
    one = forks.run(*command(folder, "long", folder / "one", "--json"))
    assert one.code == 0, one.stderr
    both = forks.job(command(folder, "long", folder / "two", "--json"), 2)
    assert [each.code for each in both] == [0, 0], both
    assert both[1].stdout == ""
    results = [Comparison.from_record(json.loads(each.stdout)) for each in (one, both[0])]
    assert choices(results[0]) == choices(results[1])
    assert results[0].window_forwards == results[1].window_forwards


def test_a_killed_comparison_leaves_a_record_and_goes_on(folder: Path, forks: Forks) -> None:
    whole = forks.run(*command(folder, "short", folder / "whole", "--json"))
    out = folder / "out"
    killed = forks.run(*command(folder, "short", out), harm=Harm("journal-replaced", 4))
    assert killed.code < 0
    partial = Comparison.from_record(json.loads((out / "comparison.json").read_text()))
    assert not all(partial.complete(arm, [1, 3]) for arm in partial.arms)
    refused = forks.run(*command(folder, "short", out))
    assert refused.code == 7
    assert "exists and is not an empty folder" in refused.stderr
    resumed = forks.run(*command(folder, "short", out, "--resume", "--json"))
    assert resumed.code == 0, resumed.stderr
    records = [Comparison.from_record(json.loads(each.stdout)) for each in (whole, resumed)]
    assert choices(records[0]) == choices(records[1])
    assert {path.name for path in out.iterdir()} == {
        "comparison.json", "comparison.csv", "comparison.md", "perplexity.png", "layer_forwards.png", "seconds.png",
        "report.html",
    }  # fmt: skip


def test_the_command_prints_the_record_that_it_writes(
    reference_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text((reference_model / "evaluation.txt").read_text()[:4000])
    monkeypatch.setattr(comparing, "INSTALLED", False)
    arguments = ["compare", reference_model, "--preset", "paper-table5", "--calibration", text, "--samples", 4,
                 "--seqlen", 64, "--eval", text, "--eval", f"ptb-test={text}", "--eval", f"again={text}"]  # fmt: skip
    ended = invoke(*arguments, "--compensations", "none", "--out", tmp_path / "out", "--json")
    assert ended.exit_code == 0, ended.stderr
    assert "no plots: matplotlib is not installed: pip install 'prunecomp[report]'" in ended.stderr
    assert json.loads(ended.stdout) == json.loads((tmp_path / "out" / "comparison.json").read_text())
    result = Comparison.from_record(json.loads(ended.stdout))
    assert result.arms == [Arm("bi", "none", one_shot=True), Arm("bi", "none")]
    assert [each.name for each in result.texts] == ["text", "ptb-test", "again"]
    assert result.layers == [3]
    shown = invoke(*arguments, "--metrics", "last", "--layers", "1-2", "--out", tmp_path / "shown")
    assert shown.exit_code == 0, shown.stderr
    assert "last + scale, one-shot" in shown.stdout
    left = {path.name for path in (tmp_path / "shown").iterdir()}
    assert left == {"report.html", *(f"comparison.{s}" for s in ("json", "csv", "md"))}


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--one-shot", "--both-ways"], 2, "give one of them"),
        (["--metrics", "bi,,last"], 2, "write names with commas"),
        (["--preset", "thesis"], 2, "choose paper-table5, paper"),
        (["--resume"], 7, "exists and is not an empty folder"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    reference_model: Path, tmp_path: Path, more: list[str], code: int, message: str
) -> None:
    out = tmp_path / "out"
    if code == 7:
        out.mkdir()
        (out / "something").write_text("")
    text = reference_model / "evaluation.txt"
    ended = invoke(
        "compare", reference_model, "--layers", 1, "--calibration", text, "--eval", text, "--out", out, *more
    )
    assert ended.exit_code == code
    assert message in " ".join(ended.stderr.split())


def test_help_has_an_example() -> None:
    shown = " ".join(invoke("compare", "--help").stdout.split())
    assert "Example: prunecomp compare" in shown
    assert "Exit codes" in shown


def invoke(*arguments: object) -> Any:
    return run(*arguments)


def test_tables_and_plots_follow_the_cells_but_not_too_often(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record follows every cell; how often the tables do, the time between says. All show the command."""
    save, written = comparing.save_tables, list[int]()

    def seen(result: Comparison, out: Path) -> list[Path]:
        written.append(len(result.measurements))
        return save(result, out)

    text = folder / "short.npy"
    words = ["compare", folder / "base", "--layers", "1,2", "--calibration", text, "--eval", f"held={text}",
             "--metrics", "last,random", "--compensations", "none", "--out", folder / "out", "--no-report"]  # fmt: skip
    monkeypatch.setattr(comparing, "save_tables", seen)
    monkeypatch.setattr(comparing, "SHARE", 0)
    monkeypatch.setattr(sys, "argv", ["prunecomp", *map(str, words), "--resume"])
    counts = []
    for apart, name in ((0.0, "often"), (1e9, "once")):
        monkeypatch.setattr(comparing, "APART", apart)
        written.clear()
        assert run(*(folder / name if word == folder / "out" else word for word in words)).exit_code == 0
        assert written[-1] == max(written)
        counts.append(len(set(written)))
        record = json.loads((folder / name / "comparison.json").read_text(encoding="utf-8"))
        assert record["command"] == f"prunecomp {' '.join(map(str, words))}"
    assert counts[0] == 4
    assert counts[1] == 2  # the first cell, and all of them


def test_what_is_measured_goes_on_without_tables_and_plots_so_far(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that cannot be drawn costs no comparison: only the last one is missed."""
    draw, tries = comparing.save_plots, list[int]()

    def fails_once(result: Comparison, out: Path) -> list[Path]:
        tries.append(len(result.measurements))
        if len(tries) == 1:
            raise OutputError("no space left")
        return draw(result, out)

    monkeypatch.setattr(comparing, "INSTALLED", True)
    monkeypatch.setattr(comparing, "APART", 0.0)
    monkeypatch.setattr(comparing, "save_plots", fails_once)
    text, out = folder / "short.npy", folder / "unpictured"
    ended = run("compare", folder / "base", "--layers", "1,2", "--calibration", text, "--eval", f"held={text}",
                "--metrics", "last", "--compensations", "none", "--out", out, "--no-report")  # fmt: skip
    assert ended.exit_code == 0
    assert "no tables and plots until the end (no space left)" in " ".join(ended.stderr.split())
    assert tries == [1, 2]
    assert (out / "perplexity.png").stat().st_size > 0
