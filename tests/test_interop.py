"""The check with other software: what of it needs none of that software."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from benchmarks.interop import __main__ as interop
from benchmarks.interop.report import Finding, markdown
from benchmarks.interop.suite import CHECKS, Check


def test_the_page_says_what_the_record_says() -> None:
    assert interop.PAGE.read_text() == markdown(json.loads(interop.RECORD.read_text()))


def test_the_record_has_every_check_and_no_failure() -> None:
    findings = json.loads(interop.RECORD.read_text())["findings"]
    assert {finding["software"] for finding in findings} == set(CHECKS)
    assert {finding["verdict"] for finding in findings} == {"pass"}


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


def test_a_missing_package_is_named_and_ends_in_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CHECKS, "peft", Check("benchmarks.interop.run_peft", {"not_there_at_all": "not-there"}, ""))
    assert interop.main(["--only", "peft"]) == 1
    assert "not-there is missing" in " ".join(capsys.readouterr().out.split())


def test_an_error_of_other_software_is_a_failed_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    exports: Any = None
    monkeypatch.setitem(CHECKS, "peft", Check("benchmarks.interop.not_a_module", {}, ""))
    (finding,) = interop.findings_of("peft", exports)
    assert finding["verdict"] == "fail"
    assert finding["error"] is None
