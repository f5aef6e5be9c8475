"""The report of an export, a comparison, or a folder of exports, from the records that lie there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunecomp.errors import JournalError, OptionError, OutputError
from prunecomp.io.plain import brief, read_object
from prunecomp.names import COMPARISON, CURVE, RECORD, REPORT, VERSION
from prunecomp.pruning.journal import write_whole
from prunecomp.report.compared import comparison_sections, comparison_title
from prunecomp.report.comparison import load_record
from prunecomp.report.curve import curve_sections
from prunecomp.report.exported import sections_of, title_of
from prunecomp.report.page import Section, check_report, page

COLLECTED = "collected.json"
"""What :meth:`prunecomp.Collected.record` gave, where somebody put it beside an export."""


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of ``run``, a folder with a record, to ``out``, ``report.html`` in it by default, whole or not
    at all.

    Raises :class:`OptionError` for a folder without one and for what is not installed, and :class:`OutputError`.
    """
    check_report()
    path = run / REPORT if out is None else out
    if path.suffix != ".html" and path.exists():
        raise OutputError(f"{path} is there and is no report: name a new file, or one that ends in .html")
    text = report_of(run)
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error
    return path


def report_of(run: Path) -> str:
    """The page. Raises :class:`OptionError`."""
    try:
        title, sections = _read(run)
        return page(title, sections, f"Written by prunecomp {VERSION} from the records of {run.name}.")
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = brief(f"{type(error).__name__}: {error}")
        raise OptionError(f"{run}: its record is not as prunecomp writes it ({reason})") from error


def _read(run: Path) -> tuple[str, list[Section]]:
    if (run / RECORD).is_file():
        record = read_object(run / RECORD, OptionError)
        return title_of(record), sections_of(record, _collected(run, record))
    if (run / COMPARISON).is_file():
        try:
            compared = load_record(run)
        except JournalError as error:  # which advises whoever resumes
            raise OptionError(f"{run}: its {COMPARISON} cannot be read") from error
        return comparison_title(compared), comparison_sections(compared)
    paths, cost = sorted(run.glob(f"*/{RECORD}")), None
    if (run / CURVE).is_file():  # others may be of a run before
        curve = read_object(run / CURVE, OptionError)
        paths = [run / str(stop["layers"]) / RECORD for stop in curve["stops"] if stop["layers"]]
        cost = curve.get("cost")
    records = [read_object(path, OptionError) for path in paths]
    if not records:
        raise OptionError(
            f"{run}: neither {RECORD} nor {COMPARISON} is there; give an export, what compare wrote, or a "
            "folder of exports"
        )
    if len({(record["model"], record["num_layers"]) for record in records}) > 1:
        raise OptionError(f"{run}: the exports in it are of different models; give one of them")
    return f"{Path(records[0]['model']).name}: {len(records)} exports", curve_sections(records, cost)


def _collected(run: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of the same model, as far as can be seen."""
    if not (run / COLLECTED).is_file():
        return None
    found = read_object(run / COLLECTED, OptionError)
    return found if found.get("num_layers") == record["num_layers"] else None
