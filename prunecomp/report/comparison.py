"""A comparison as tables, files and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

from rich.text import Text

from prunecomp.compare import Comparison
from prunecomp.compare.results import Measurement
from prunecomp.errors import JournalError, OutputError
from prunecomp.evaluation.tasks import TaskScore
from prunecomp.io.escape import csv_cell, markdown_table
from prunecomp.io.escape import markdown as escaped
from prunecomp.io.plain import brief, json_text, read_object
from prunecomp.io.values import listed
from prunecomp.pruning.journal import partial, write_whole
from prunecomp.repair import RIDGE
from prunecomp.report.console import Table
from prunecomp.report.profile import scored

RECORD, ROWS, TABLES = "comparison.json", "comparison.csv", "comparison.md"
PARTIAL = partial(Path(RECORD)).name
"""All that is there where a comparison was killed as it wrote for the first time."""

BEST = "**"
"""Around the best number of a column, as Markdown has it."""


def save_record(result: Comparison, folder: Path) -> None:
    """Write what is there so far to ``comparison.json``, whole or not at all. Raises :class:`OutputError`."""
    path = folder / RECORD
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json_text(result.record(), ascii_only=True) + "\n").encode())
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()  # where it is empty: nothing was measured before
        raise OutputError(f"{path} cannot be written: {error}") from error


def load_record(folder: Path) -> Comparison:
    """What :func:`save_record` wrote. Raises :class:`JournalError` where it cannot be read."""
    path = folder / RECORD
    try:
        return Comparison.from_record(read_object(path, JournalError, "give another --out"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = brief(f"{type(error).__name__}: {error}")
        raise JournalError(f"{path} cannot be read as a comparison ({reason}): give another --out") from None


def save_tables(result: Comparison, folder: Path) -> list[Path]:
    """Write ``comparison.csv``, a row for each arm, number of layers and text, and ``comparison.md``. Raises
    :class:`OutputError`."""
    contents = {ROWS: csv_text(result), TABLES: markdown(result)}
    try:
        for name, text in contents.items():
            write_whole(folder / name, text.encode())
    except OSError as error:
        raise OutputError(f"{folder} cannot be written to: {error}") from error
    return [folder / name for name in contents]


def csv_text(result: Comparison) -> str:
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(
        ["metric", "compensation", "mode", "parity", "layers", "text", "perplexity", "removed", "scales",
         "layer_forwards", "seconds", "kl", "top1", "repair", "ridge", "taken", "repair_layer_forwards",
         "repair_seconds", *TASK_CELLS]
    )  # fmt: skip
    nothing = [""] * len(TASK_CELLS)
    for text, value in result.dense.items():
        rows.writerow(["dense", "", "", "", 0, csv_cell(text), value, *[""] * 11, *nothing])
    for task in result.dense_tasks:
        rows.writerow(["dense", "", "", "", 0, *[""] * 13, *task_cells(task)])
    for one in result.measurements:
        arm = one.arm
        mode = "one-shot" if arm.one_shot else "iterative"
        how = [csv_cell(word) for word in (arm.metric, arm.compensation, mode, arm.parity or "")]
        went = [" ".join(map(str, one.removed)), " ".join(map(str, one.scales))]
        cost, repair = [one.layer_forwards, one.seconds], repair_cells(one)
        for text, value in one.perplexity.items():
            beside = [*cost, *beside_dense(one, text), *repair]
            rows.writerow([*how, one.layers, csv_cell(text), value, *went, *beside, *nothing])
        for task in one.tasks:
            rows.writerow([*how, one.layers, "", "", *went, *cost, "", "", *repair, *task_cells(task)])
    return out.getvalue()


TASK_CELLS = ["task", "task_metric", "score", "retained"]
"""Columns that are filled in the rows of tasks, which have no text."""


def task_cells(one: TaskScore) -> list[Any]:
    return [csv_cell(one.task), csv_cell(one.metric), one.score, "" if one.retained is None else one.retained]


def task_columns(result: Comparison) -> list[str]:
    return ["arm", "N", *(f"{one.task} ({one.metric})" for one in result.dense_tasks)]


def task_rows(result: Comparison) -> list[list[str]]:
    """A row for the dense model, and for each arm and number of layers; none where no tasks were asked."""
    if not result.dense_tasks:
        return []
    rows = [["dense", "0", *(f"{one.score:.3f}" for one in result.dense_tasks)]]
    for arm, count in product(result.arms, result.layers):
        one = result.measurement(arm, count)
        cells = [UNMEASURED] * len(result.dense_tasks) if one is None else map(scored, one.tasks)
        rows.append([arm.name, str(count), *cells])
    return rows


def repair_cells(one: Measurement) -> list[Any]:
    """Its name and ridge, what was taken of it, and its cost."""
    if one.repair is None:
        return [one.arm.repair, *[""] * 4]
    fitted = one.repair
    return [fitted.asked, one.arm.ridge or RIDGE, fitted.taken, fitted.layer_forwards, fitted.seconds]


def beside_dense(one: Measurement, text: str) -> list[Any]:
    """KL divergence from the dense model and top-1 agreement with it."""
    found = one.agreement.get(text, {})
    return [found.get("kl", ""), found.get("top1", "")]


def agreement_rows(result: Comparison, text: str) -> list[list[str]]:
    """A row for each arm, a column for each number of layers: top-1 agreement, and KL divergence in nats a token."""
    rows = []
    for arm in result.arms:
        cells = [arm.name]
        for count in result.layers:
            one = result.measurement(arm, count)
            kl, top1 = ("", "") if one is None else beside_dense(one, text)
            cells.append(UNMEASURED if one is None else NO_STATES if kl == "" else f"{top1:.3f} ({kl:.3f})")
        rows.append(cells)
    return rows


TASKS = "Tasks of lm-eval: the score, and the share of the dense model's that is retained"
UNMEASURED, NO_STATES = "not measured", "no room"
"""What stands in a cell without a number."""
NO_ROOM = "Agreement with the dense model was not measured: memory has no room for its last states."
AGREEMENT = "Top-1 agreement with the dense model, and KL divergence from it in nats a token"


def columns(first: str, result: Comparison) -> list[str]:
    """Headings of a table with a column for each number of layers."""
    return [first, *(f"N = {count}" for count in result.layers)]


def table_of(result: Comparison, text: str) -> list[tuple[str, list[float | None]]]:
    """Perplexities on a text, a row for the dense model and each arm, a column for each number of layers."""
    rows: list[tuple[str, list[float | None]]] = [("dense", [result.dense[text]] * len(result.layers))]
    for arm in result.arms:
        found = [result.measurement(arm, count) for count in result.layers]
        rows.append((arm.name, [None if one is None else one.perplexity[text] for one in found]))
    return rows


def formatted(rows: Sequence[tuple[str, list[float | None]]], mark: str) -> list[list[str]]:
    """Cells as text; the best arm of each column between ``mark``s, the first row, the dense model, apart."""
    columns = list(zip(*(values for _, values in rows[1:]), strict=True))
    best = [min((value for value in column if value is not None), default=None) for column in columns]
    cells = []
    for number, (name, values) in enumerate(rows):
        marked = [name]
        for value, least in zip(values, best if number else [None] * len(values), strict=True):
            shown = UNMEASURED if value is None else f"{value:,.2f}"
            marked.append(f"{mark}{shown}{mark}" if value is not None and value == least else shown)
        cells.append(marked)
    return cells


def work_rows(result: Comparison) -> list[list[str]]:
    rows = []
    for one in result.work:
        costs = [(one.layer_forwards, one.seconds), (one.repair_layer_forwards, one.repair_seconds)]
        rows.append([one.arm.name, *(cell for work, seconds in costs for cell in (f"{work:g}", f"{seconds:,.1f}"))])
    return rows


WORK_COLUMNS = ["arm", "layer-forwards", "seconds to choose", "layer-forwards of repairs", "seconds to repair"]


def taken_rows(result: Comparison) -> list[list[str]]:
    """What each arm that leaves it to a judge took, a column for each number of layers."""
    rows = []
    for arm in (arm for arm in result.arms if arm.repair == "auto"):
        found = [result.measurement(arm, count) for count in result.layers]
        rows.append([arm.name, *("" if one is None or one.repair is None else one.repair.taken for one in found)])
    return rows


TAKEN = "What auto took"


def saving(result: Comparison) -> str:
    run = f"{result.window_forwards:,} passes of a window through a layer in {result.seconds:,.1f} s"
    if result.saving is None:
        return f"{run}, in {result.sittings} sittings."
    separately = f"{result.window_forwards_separately:,}, {result.saving:.2f} times as many"
    return f"{run}; arms one by one would have taken {separately}."


def conditions(result: Comparison) -> list[tuple[str, object]]:
    """What all arms have in common."""
    windows, asked = result.calibration, result.identity.get("options", {})
    return [
        ("model", f"{result.model}, {result.num_layers} layers"),
        ("calibration", f"{windows.source}, {windows.windows} windows of {windows.seqlen} tokens"),
        *((text.name, f"{text.source}, {text.windows} windows of {text.seqlen} tokens") for text in result.texts),
        ("computed in", asked.get("dtype", "a dtype that was not recorded")),
        *([("tasks", told_tasks(result))] if result.dense_tasks else []),
    ]


def told_tasks(result: Comparison) -> str:
    """Which were asked, and how."""
    asked = result.identity["tasks"]
    shots = "examples as each has them" if asked["shots"] is None else f"{asked['shots']} solved examples"
    limit = "all questions" if asked["limit"] is None else f"the first {asked['limit']} questions of each"
    return f"{listed(asked['names'])}, {shots}, {limit}"


def markdown(result: Comparison) -> str:
    """What was compared, one table for each text, then the work."""
    headings = columns("arm", result)
    lines = [*(f"- {escaped(name)}: {escaped(value)}" for name, value in conditions(result)), ""]
    for text in result.texts:
        lines += [
            f"## {escaped(text.name)}",
            "",
            f"Perplexity over {text.windows} windows of {text.seqlen} tokens.",
            "",
        ]
        lines += markdown_table(headings, formatted(table_of(result, text.name), BEST))
        if any(one.agreement for one in result.measurements):
            lines += ["", f"{AGREEMENT}:", "", *markdown_table(headings, agreement_rows(result, text.name)), ""]
        else:
            lines += ["", NO_ROOM, ""]
    if tasks := task_rows(result):
        lines += [f"## {TASKS}", "", *markdown_table([*map(escaped, task_columns(result))], tasks), ""]
    if taken := taken_rows(result):
        lines += [f"## {TAKEN}", "", *markdown_table(headings, taken), ""]
    lines += ["## Work", "", *markdown_table(WORK_COLUMNS, work_rows(result)), "", saving(result)]
    return "\n".join(lines) + "\n"


def comparison_tables(result: Comparison) -> list[Table]:
    """The same for a terminal."""
    tables = []
    for text in result.texts:
        # A table folds its title to its own width: names of texts may be long, so they stand in the first column.
        headings, first = columns(text.name, result), [text.name]
        shown = [
            [name, *(Text(cell.strip(BEST), "bold" if cell.startswith(BEST) else "") for cell in cells)]
            for name, *cells in formatted(table_of(result, text.name), BEST)
        ]
        title = f"perplexity, {text.windows} x {text.seqlen} tokens"
        tables.append(Table.of(title, headings, shown, left=first, fold=first))
        if any(one.agreement for one in result.measurements):
            title = "top-1 agreement with dense (KL, nats a token)"
            rows = agreement_rows(result, text.name)
            tables.append(Table.of(title, headings, rows, left=first, fold=first))
    if tasks := task_rows(result):
        headings = task_columns(result)
        tables.append(Table.of(TASKS[0].lower() + TASKS[1:], headings, tasks, left=headings[:1], fold=headings))
    if taken := taken_rows(result):
        headings = columns("arm", result)
        tables.append(Table.of(TAKEN[0].lower() + TAKEN[1:], headings, taken, left=headings))
    return [*tables, Table.of("what each arm needed", WORK_COLUMNS, work_rows(result), left=["arm"])]
