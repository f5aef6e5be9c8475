"""The command ``report``, and the report beside what other commands write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prunecomp.report import page
from tests.situations.small import Small, invoke, said, small

__all__ = ["small"]


def prune(small: Small, out: Path, *more: str) -> str:
    ended = invoke("prune", small.folder, "--layers", 1, "--calibration", small.windows, "--out", out, *more)
    assert ended.exit_code == 0, ended.output
    return ended.stderr


def test_a_report_is_written_again_from_the_record_and_not_where_it_is_not_wanted(small: Small, tmp_path: Path) -> None:
    prune(small, tmp_path / "with")
    prune(small, tmp_path / "without", "--no-report")
    assert not (tmp_path / "without" / "report.html").exists()
    first = (tmp_path / "with" / "report.html").read_bytes()
    again = invoke("report", tmp_path / "with", "--out", tmp_path / "again.html")
    assert again.exit_code == 0, again.output
    assert str(tmp_path / "again.html") in again.stdout
    assert (tmp_path / "again.html").read_bytes() == first
    assert invoke("report", tmp_path / "without").exit_code == 0
    assert (tmp_path / "without" / "report.html").is_file()


def test_without_the_extra_a_run_succeeds_and_says_so_in_a_line(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "HAS_MATPLOTLIB", False)
    told = [line for line in prune(small, tmp_path / "out").splitlines() if "report" in line]
    assert told == ["no report: matplotlib is not installed: pip install 'prunecomp[report]'"]
    assert "report.html" not in os.listdir(tmp_path / "out")
    monkeypatch.setattr(page, "HAS_JINJA", False)
    ended = invoke("report", tmp_path / "out")
    assert ended.exit_code == 2
    assert "matplotlib and jinja2 are not installed" in said(ended)


def test_a_folder_that_is_no_run_is_refused_and_named(tmp_path: Path) -> None:
    ended = invoke("report", tmp_path)
    assert ended.exit_code == 2
    assert str(tmp_path) in said(ended)
    nothing = invoke("report")
    assert nothing.exit_code == 2
    assert "RUN: report needs one" in said(nothing)
