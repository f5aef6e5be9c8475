"""The command that compares ways to prune."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import prunecomp
from prunecomp.checkpoint.claim import claimed
from prunecomp.checkpoint.writer import check_output
from prunecomp.cli.reporting import report_beside
from prunecomp.cli.shell import print_json, told
from prunecomp.compare import Comparison
from prunecomp.engine.parallel import from_leader, process_group
from prunecomp.options import CompareOptions
from prunecomp.report.comparison import (
    PARTIAL,
    RECORD,
    comparison_tables,
    load_record,
    save_record,
    save_tables,
    saving,
)
from prunecomp.report.console import Console
from prunecomp.report.drawing import INSTALLED, NEEDS_MATPLOTLIB
from prunecomp.report.plots import save_plots


def earlier_results(held: ExitStack, out: Path, resume: bool) -> Comparison | None:
    """Have nobody else write to ``out``; what an interrupted comparison has left there. Raises :class:`OutputError`
    where something else is there."""
    held.enter_context(claimed(out))
    if resume:
        if (out / RECORD).is_file():
            return load_record(out)
        (out / PARTIAL).unlink(missing_ok=True)
    check_output(out)
    return None


def write_results(result: Comparison, out: Path) -> str | None:
    """Everything but the record, which is there; returns what could not be done."""
    save_record(result, out)
    save_tables(result, out)
    if not INSTALLED:
        return f"no plots: {NEEDS_MATPLOTLIB}"
    save_plots(result, out)
    return None


def compare(model: str, options: CompareOptions, given: dict[str, Any]) -> None:
    out = options.out
    with process_group(options.device) as job, ExitStack() as held:
        # The first process alone looks and writes: others may be on machines that do not see the folder.
        earlier = from_leader(lambda: earlier_results(held, out, options.resume))
        keywords = {**CompareOptions.keywords("compare", given), **told(job), "earlier": earlier}
        if job.leads:
            keywords["on_measured"] = lambda so_far: save_record(so_far, out)
        result = prunecomp.compare(model, **keywords)
        note = write_results(result, out) if job.leads else None
        if job.leads and options.report:
            report_beside(out)
    if not job.leads:
        return
    if note is not None:
        Console(stderr=True).print(note, highlight=False)
    if options.json:
        print_json(result.record())
        return
    console = Console()
    for table in comparison_tables(result):
        console.print(table)
    console.print(saving(result), highlight=False)
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)
