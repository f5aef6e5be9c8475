"""Give exports of the bundled model to other software and compare what it computes with what we say.

    python -m benchmarks.interop
    python -m benchmarks.interop --only lm-eval,peft

A run of all checks writes benchmarks/results/interop.json and docs/reference/interop.md; one of some only prints.
Exits with 1 if a comparison fails or a package is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.interop.exports import Exports, make_exports
from benchmarks.interop.report import Finding, markdown, table
from benchmarks.interop.suite import CHECKS

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benchmarks" / "results" / "interop.json"
PAGE = ROOT / "docs" / "reference" / "interop.md"
OURS = ("prunecomp", "torch", "transformers", "tokenizers", "safetensors")


def findings_of(name: str, exports: Exports) -> list[dict[str, Any]]:
    """An error in other software is a finding about it, and no reason to leave the rest unchecked."""
    try:
        findings: list[Finding] = import_module(CHECKS[name].module).run(exports)
    except Exception as error:
        Console(stderr=True).print_exception()
        findings = [Finding(name, "", f"ended with {type(error).__name__}", float("inf"), 0.0)]
    return [finding.record() for finding in findings]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CHECKS), help="names of checks, separated by commas")
    chosen = parser.parse_args(arguments).only.split(",")
    if unknown := set(chosen) - set(CHECKS):
        parser.error(f"--only {', '.join(sorted(unknown))}: choose from {', '.join(CHECKS)}")

    console = Console()
    if not console.is_terminal:
        console.width = 160  # a log has no edge, and the table would be folded into shreds
    missing = {name: packages for name in chosen if (packages := CHECKS[name].missing())}
    for name, packages in missing.items():
        console.print(f"{name}: not checked, {', '.join(packages)} is missing (make interop installs it)")
    present = [name for name in chosen if name not in missing]
    if not present:
        return 1

    os.environ["HF_HUB_OFFLINE"] = "1"  # for what is started from here; nothing is to come from the hub
    with tempfile.TemporaryDirectory() as work:
        exports = make_exports(Path(work))
        findings = [finding for name in present for finding in findings_of(name, exports)]
    console.print(table(findings))
    if present == list(CHECKS):
        packages = [package for check in CHECKS.values() for package in check.needs.values()]
        record = {
            "machine": platform.machine(),
            "python": platform.python_version(),
            "versions": {package: version(package) for package in (*OURS, *packages)},
            "removed": exports.control.removed,
            "scales": {export.name: export.scales for export in exports.repaired},
            "findings": findings,
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        PAGE.write_text(markdown(record))
        console.print(f"written: {RECORD.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}")
    return 1 if missing or any(finding["verdict"] == "fail" for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
