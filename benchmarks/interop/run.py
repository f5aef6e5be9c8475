"""The checks of one peer, in its environment: ``python -m benchmarks.interop.run EXPORTS.pickle OUT.json NAME...``."""

from __future__ import annotations

import json
import pickle
import platform
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.interop.exports import Exports
from benchmarks.interop.report import Finding
from benchmarks.interop.suite import CHECKS

OURS = ("prunecomp", "torch", "transformers", "tokenizers", "safetensors")


def findings_of(name: str, exports: Exports) -> list[dict[str, Any]]:
    """An error in other software is a finding about it, and no reason to leave the rest unchecked."""
    check = CHECKS[name]
    try:
        module = import_module(f"benchmarks.interop.{check.module}")
        findings: list[Finding] = module.run(name, check.tests) if check.tests else module.run(exports)
    except Exception as error:
        Console(stderr=True).print_exception()
        findings = [Finding(name, "", f"ended with {type(error).__name__}", float("inf"), 0.0)]
    return [finding.record() for finding in findings]


def main(given: str, out: str, *names: str) -> None:
    exports = pickle.loads(Path(given).read_bytes())
    packages = dict.fromkeys([*OURS, *(package for name in names for package in CHECKS[name].packages)])
    part = {
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "findings": [finding for name in names for finding in findings_of(name, exports)],
    }
    Path(out).write_text(json.dumps(part))


if __name__ == "__main__":
    main(*sys.argv[1:])
