"""The command that writes a report of what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunecomp.errors import PrunecompError
from prunecomp.options import PruneOptions
from prunecomp.report.console import Console
from prunecomp.report.writing import write_report


def report(run: str, options: PruneOptions, given: dict[str, Any]) -> None:
    path = write_report(Path(run), options.out)
    Console().print(f"wrote {path}", highlight=False, soft_wrap=True)


def report_beside(out: Path) -> None:
    """Write the report into ``out``; where that cannot be, a line says why, for what it tells of is whole."""
    try:
        write_report(out)
    except PrunecompError as error:
        Console(stderr=True, soft_wrap=True).print(f"no report: {error}", highlight=False)
