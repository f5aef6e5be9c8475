"""The command that compares ways to prune."""

from __future__ import annotations

import math
import time
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import prunecomp
from prunecomp.checkpoint.claim import claimed
from prunecomp.checkpoint.writer import check_output
from prunecomp.cli.reporting import report_beside
from prunecomp.cli.shell import as_typed, print_json, told
from prunecomp.compare import Comparison
from prunecomp.engine.parallel import from_leader, process_group
from prunecomp.errors import PrunecompWarning
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


def show_results(result: Comparison, out: Path) -> str | None:
    """Tables and plots beside the record; returns what could not be done."""
    save_tables(result, out)
    if not INSTALLED:
        return f"no plots: {NEEDS_MATPLOTLIB}"
    save_plots(result, out)
    return None


APART = 5.0
"""Seconds at least between two writings of tables and plots, and :data:`SHARE` times what the last one took."""
SHARE = 20


class SoFar:
    """Writes what is measured so far: the record each time, tables and plots once there is a cell, now and then."""

    def __init__(self, out: Path) -> None:
        self._out, self._next = out, 0.0

    def __call__(self, result: Comparison) -> None:
        result = replace(result, command=as_typed())
        save_record(result, self._out)
        began = time.perf_counter()
        if not result.measurements or began < self._next:
            return
        try:
            show_results(result, self._out)
        except Exception as error:  # whatever it is, the last writing raises it; what is measured goes on
            self._next = math.inf
            warnings.warn(f"no tables and plots until the end ({error})", PrunecompWarning, stacklevel=2)
            return
        ended = time.perf_counter()
        self._next = ended + max(APART, SHARE * (ended - began))


def compare(model: str, options: CompareOptions, given: dict[str, Any]) -> None:
    out = options.out
    with process_group(options.device) as job, ExitStack() as held:
        # The first process alone looks and writes: others may be on machines that do not see the folder.
        earlier = from_leader(lambda: earlier_results(held, out, options.resume))
        keywords = {**CompareOptions.keywords("compare", given), **told(job), "earlier": earlier}
        if job.leads:
            keywords["on_measured"] = SoFar(out)
        result = replace(prunecomp.compare(model, **keywords), command=as_typed())
        if job.leads:
            save_record(result, out)
            note = show_results(result, out)
            if options.report:
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
