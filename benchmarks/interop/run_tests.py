"""The tests of a tool that calls us, or loads what another makes: each comparison that they put on record is a finding,
and that none of them fails is one more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.interop.report import Finding

TESTS = Path(__file__).parents[2] / "tests" / "integrations"


class Recorder:
    """What pytest tells a plug-in."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.tests: set[str] = set()
        self.failed: set[str] = set()
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.tests.add(report.nodeid)
        if report.when == "teardown":
            self.findings += [value for name, value in report.user_properties if name == "finding"]
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.skipped and isinstance(report.longrepr, tuple):
            self.skipped.append(report.longrepr[2].removeprefix("Skipped: "))


def run(name: str, files: tuple[str, ...]) -> list[Finding]:
    recorder = Recorder()
    pytest.main(["-q", "-rs", "-p", "no:cacheprovider", *(str(TESTS / file) for file in files)], [recorder])
    said = ", ".join([f"{len(recorder.tests)} tests", *(f"one not run: {reason}" for reason in recorder.skipped)])
    return [
        *(replace(finding, software=name) for finding in recorder.findings),
        Finding(name, "", "tests that fail", len(recorder.failed), 0, None, said),
    ]
