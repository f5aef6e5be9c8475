"""The check with other software: what of it needs none of that software."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.interop import __main__ as interop
from benchmarks.interop import run
from benchmarks.interop.report import Finding, findings_of, markdown, not_run
from benchmarks.interop.suite import CHECKS, Check


def test_the_page_says_what_the_record_says() -> None:
    assert interop.PAGE.read_text() == markdown(json.loads(interop.RECORD.read_text()))


OPEN = {("vLLM", "llm-compressor's, W8A8"), ("vLLM", "")}
"""Failures that the page shows and says something of: vLLM's tokens of a quantised checkpoint."""


def test_the_record_has_every_check_and_no_failure_that_is_not_known() -> None:
    findings = findings_of(json.loads(interop.RECORD.read_text()))
    assert {finding["software"] for finding in findings} == set(CHECKS)
    failed = {(finding["software"], finding["export"]) for finding in findings if finding["verdict"] == "fail"}
    assert failed <= OPEN


@pytest.mark.parametrize(
    ("error", "control", "verdict"),
    [
        (0.5, None, "pass"),
        (0.5, 2.0, "pass"),
        (1.5, 2.0, "fail"),
        (math.nan, None, "fail"),
        (math.inf, 2.0, "fail"),
        (0.5, 0.9, "fail"),  # it does not tell the control from the export
        (0.5, math.nan, "fail"),
    ],
)
def test_a_finding_passes_within_its_tolerance_if_the_control_does_not(
    error: float, control: float | None, verdict: str
) -> None:
    record = Finding("x", "y", "z", error, 1.0, control).record()
    assert record["verdict"] == verdict
    json.dumps(record, allow_nan=False)


def test_what_is_not_installed_is_said_and_ends_in_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / ".venv-interop-vllm.log").write_text("Looking\nERROR: no wheel of | it\nmake: *** [.venv] Error 1\n")
    monkeypatch.setattr(interop, "ROOT", tmp_path)
    for name in ("RECORD", "PAGE"):
        monkeypatch.setattr(interop, name, tmp_path / name)
    interop.RECORD.write_text(json.dumps({"llama_cpp": {"findings": [not_run("llama.cpp", "as it was")]}}))
    assert interop.main(["--peers", "vllm,axolotl"]) == 1
    said = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "not installed here: ERROR: no wheel of / it" in said
    assert "not installed here: make interop installs it" in said
    record = json.loads(interop.RECORD.read_text())
    assert list(record) == ["llama_cpp", "axolotl", "vllm"]
    assert {finding["verdict"] for finding in findings_of(record)} == {"not run"}
    assert record["llama_cpp"]["findings"][0]["compared"] == "as it was"


def test_a_peer_that_dies_leaves_the_others_their_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its Python is one that ends with 1."""
    installed = tmp_path / ".venv-interop-vllm"
    (installed / "bin").mkdir(parents=True)
    (installed / ".installed").touch()
    (installed / "bin" / "python").symlink_to(shutil.which("false") or "")
    monkeypatch.setattr(interop, "ROOT", tmp_path)
    (finding,) = interop.run_peer("vllm", tmp_path)["findings"]
    assert (finding["software"], finding["verdict"]) == ("vLLM", "fail")


def test_an_error_of_other_software_is_a_failed_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECKS, "peft", Check("exports", (), "", "not_a_module"))
    (finding,) = run.findings_of("peft", lambda: pytest.fail("nothing asked for it"))
    assert finding["verdict"] == "fail"
    assert finding["error"] is None


def test_what_tests_put_on_record_are_findings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a process of its own: here pytest runs already."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\nfrom benchmarks.interop.report import Finding\n"
        "def test_one(record_property):\n    record_property('finding', Finding('', 'x', 'y', 2.0, 1.0))\n"
        "    assert 0\n"
        "def test_two():\n    pass\n@pytest.mark.skip(reason='of that')\ndef test_three():\n    pass\n"
    )
    program = (
        "import sys, json\nfrom pathlib import Path\nfrom benchmarks.interop import run_tests\n"
        f"run_tests.TESTS = Path({str(tmp_path)!r})\n"
        "found = [one.record() for one in run_tests.run('tool', ('test_it.py',))]\n"
        "Path(sys.argv[1]).write_text(json.dumps(found))"
    )
    out = tmp_path / "found.json"
    subprocess.run([sys.executable, "-c", program, str(out)], check=True, capture_output=True, cwd=interop.ROOT)
    one, count = json.loads(out.read_text())
    assert (one["software"], one["export"], one["error"], one["verdict"]) == ("tool", "x", 2.0, "fail")
    assert (count["error"], count["values"]) == (1, "3 tests, one not run: of that")
