"""The worked examples run, as they stand in the folder."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import prunecomp

EXAMPLES = Path(__file__).parent.parent / "examples"
SEARCH, OWN_TEXT = EXAMPLES / "search.py", EXAMPLES / "own_text.py"


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


def test_a_model_writes_what_it_is_calibrated_on(
    monkeypatch: pytest.MonkeyPatch, reference_model: Path, tmp_path: Path
) -> None:
    def write(out: Path, *more: object) -> None:
        given = [OWN_TEXT, reference_model, "--samples", 3, "--tokens", 24, "--out", out, *more]
        monkeypatch.setattr(sys, "argv", list(map(str, given)))
        runpy.run_path(str(OWN_TEXT), run_name="__main__")

    one, again, other = (tmp_path / f"{name}.jsonl" for name in ("one", "again", "other"))
    write(one)
    write(again)
    write(other, "--seed", 1)
    assert one.read_bytes() == again.read_bytes() != other.read_bytes()
    texts = [json.loads(line)["text"] for line in one.read_text().splitlines()]
    assert len(set(texts)) == 3
    result = prunecomp.prune(reference_model, 1, one, samples=2, seqlen=16, repair="none")
    assert result.calibration.tokens.shape == (2, 16)
    with pytest.raises(SystemExit, match="2"):
        write(tmp_path / "own.txt")
