"""What the checks found: as a table, as plain data, and as docs/reference/interop.md."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.interop.suite import CHECKS

HEADINGS = ("software", "export", "compared", "values", "error", "tolerance", "control", "verdict")


@dataclass(frozen=True)
class Finding:
    """One comparison of what other software makes of an export with what we say of it."""

    software: str
    export: str
    compared: str
    error: float
    tolerance: float
    control: float | None = None
    """The same error against a model that it must not be taken for; None where there is no such model."""
    values: str = ""

    @property
    def passed(self) -> bool:
        """An error that is not finite does not pass, nor a comparison that the control would pass."""
        sees = self.control is None or self.control > self.tolerance
        return math.isfinite(self.error) and self.error <= self.tolerance and sees

    def record(self) -> dict[str, Any]:
        """For JSON, which has no infinity: null is a number that is not finite."""
        return {
            "software": self.software,
            "export": self.export,
            "compared": self.compared,
            "values": self.values,
            "error": _finite(self.error),
            "tolerance": self.tolerance,
            "control": _finite(self.control),
            "verdict": "pass" if self.passed else "fail",
        }


def not_run(software: str, reason: str) -> dict[str, Any]:
    """The record of a check that could not be made."""
    record = Finding(software, "", reason, math.nan, math.nan).record()
    return {**record, "tolerance": None, "verdict": "not run"}


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def cells(finding: dict[str, Any]) -> list[str]:
    numbers = ["" if finding[name] is None else f"{finding[name]:.3g}" for name in ("error", "tolerance", "control")]
    if finding["error"] is None and finding["verdict"] == "fail":
        numbers[0] = "not finite"
    words = [finding[name] for name in ("software", "export", "compared", "values")]
    return [*words, *numbers, finding["verdict"]]


def table(findings: list[dict[str, Any]]) -> Table:
    result = Table(title="the bundled model in other software")
    for heading in HEADINGS:
        number = heading in ("error", "tolerance", "control")
        result.add_column(heading, justify="right" if number else "left", no_wrap=heading != "compared")
    for finding in findings:
        result.add_row(*cells(finding), style=None if finding["verdict"] == "pass" else "bold red")
    return result


def findings_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of all peers."""
    return [finding for part in record.values() for finding in part["findings"]]


def markdown(record: dict[str, Any]) -> str:
    """docs/reference/interop.md of a recorded run."""
    findings = findings_of(record)
    counts = Counter(finding["verdict"] for finding in findings)
    lines = [
        "# Other software loads what we export, and calls us",
        "",
        "Made by `make interop`, which sets up environments (compiling llama.cpp takes some minutes), exports the "
        "bundled model, gives the exports to other software, and lets [tools that call us](../how-to/integrations.md) "
        "make theirs. Nothing is fetched but from the package index. `make test` does not run it.",
        "",
        f"**{counts['pass']} of {len(findings) - counts['not run']} comparisons pass**, and {counts['not run']} checks "
        "were not made. Each environment, and the day it was measured:",
        "",
        "| environment | measured | machine | Python | versions | layers that its exports lack |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_environment(peer, part) for peer, part in record.items()),
        "",
        "The exports have six layers of the bundled model removed by block influence, and differ in what took their "
        "place: the paper's scale folded up, the same folded down, or the repair `refit`. They are stored in "
        "bfloat16, as the model is, and all sides compute in float32. Tools that call us remove five layers, with the "
        "repair that `prune` does by default.",
        "",
        "*Control* is the error of the same comparison with a model that it must not be taken for: an export with the "
        "same layers removed and nothing put in their place, unless told otherwise below. A comparison passes if its "
        "error is within the tolerance and the control's is not.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | --- |",
        *("| " + " | ".join(cells(finding)) + " |" for finding in findings),
        "",
        "## What each check does",
        "",
        *(f"- **{name}**: {check.about}" for name, check in CHECKS.items()),
        "",
        "[`benchmarks/results/interop.json`](../../benchmarks/results/interop.json) has the figures in full; "
        "[`benchmarks/interop`](../../benchmarks/interop) is the code.",
    ]
    return "\n".join(line if line.startswith("|") else _wrapped(line) for line in lines) + "\n"


def _environment(peer: str, part: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in part.get("versions", {}).items())
    words = [peer, *(part.get(name, "") for name in ("measured", "machine", "python")), versions or "not run"]
    return "| " + " | ".join([*words, ", ".join(map(str, part.get("removed", ())))]) + " |"


def _wrapped(line: str) -> str:
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
