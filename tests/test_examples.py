"""The worked examples run, as they stand in the folder."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

SEARCH = Path(__file__).parent.parent / "examples" / "search.py"


def run_search(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(SEARCH), *map(str, arguments)])
    runpy.run_path(str(SEARCH), run_name="__main__")


def test_the_search_compares_its_set_with_the_choice_of_the_metric(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_search(
        monkeypatch, "--layers", 2, "--population", 3, "--generations", 1, "--samples", 2, "--seqlen", 16,
        "--out", tmp_path / "out",
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert [row[0] for row in rows] == ["none", "block influence", "search"]
    assert float(rows[2][2]) <= float(rows[1][2])
    assert len(rows[2][1].split()) == 2
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 14


def test_the_search_explains_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_search(monkeypatch, "--help")
    assert "--generations" in capsys.readouterr().out
