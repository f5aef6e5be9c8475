"""The checks of one peer, in its environment: ``python -m benchmarks.interop.run OUT.json NAME...``."""

from __future__ import annotations

import datetime
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.interop.exports import Exports, make_exports
from benchmarks.interop.report import Finding
from benchmarks.interop.suite import CHECKS

OURS = ("prunecomp", "torch", "transformers", "tokenizers", "safetensors")


def findings_of(name: str, exports: Callable[[], Exports]) -> list[dict[str, Any]]:
    """An error in other software is a finding about it, and no reason to leave the rest unchecked."""
    check = CHECKS[name]
    try:
        module = import_module(f"benchmarks.interop.{check.module}")
        findings: list[Finding] = module.run(name, check.tests) if check.tests else module.run(exports())
    except Exception as error:
        Console(stderr=True).print_exception()
        findings = [Finding(name, "", f"ended with {type(error).__name__}", float("inf"), 0.0)]
    return [finding.record() for finding in findings]


def main(out: str, *names: str) -> None:
    packages = dict.fromkeys([*OURS, *(package for name in names for package in CHECKS[name].packages)])
    part: dict[str, Any] = {
        "measured": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }
    with tempfile.TemporaryDirectory() as work:

        @cache
        def exports() -> Exports:
            made = make_exports(Path(work))
            part["removed"] = made.control.removed
            part["scales"] = {export.name: export.scales for export in made.repaired}
            return made

        part["findings"] = [finding for name in names for finding in findings_of(name, exports)]
    Path(out).write_text(json.dumps(part))


if __name__ == "__main__":
    main(*sys.argv[1:])
