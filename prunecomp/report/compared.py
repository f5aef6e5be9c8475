"""What the report of a comparison shows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from prunecomp.compare import Comparison
from prunecomp.compare.results import Text
from prunecomp.report.comparison import (
    AGREEMENT,
    TASKS,
    WORK_COLUMNS,
    agreement_rows,
    columns,
    conditions,
    formatted,
    saving,
    table_of,
    task_columns,
    task_rows,
    work_rows,
)
from prunecomp.report.drawing import svg
from prunecomp.report.figures import draw_lines, draw_seconds
from prunecomp.report.page import Block, Command, Facts, Grid, Picture, Section, Strip
from prunecomp.report.plots import SECONDS, best_of, points_of, task_points
from prunecomp.report.reading import ACROSS, WIDTH

STRIPS = "After the most removals of each way; a number in a removed layer says as which it went."


def comparison_title(result: Comparison) -> str:
    return f"{Path(result.model).name}: {len(result.arms)} ways to prune"


def comparison_sections(result: Comparison) -> list[Section]:
    """Of a comparison, whole or so far."""
    return [
        Section("In short", [Facts(conditions(result))], wide=True),
        *(_on_text(result, text, number) for number, text in enumerate(result.texts)),
        Section(TASKS, list(_tasks(result))),
        Section("Which layers go", list(_strips(result)), STRIPS, wide=True),
        Section("Work", list(_work(result)), saving(result)),
        Section("Do it again", list(_again(result))),
    ]  # fmt: skip


def _on_text(result: Comparison, text: Text, number: int) -> Section:
    dense, best = result.dense.get(text.name), best_of(result, text.name)
    if not result.measurements or dense is None:
        return Section(text.name)
    headings = columns("arm", result)
    lines = {name: [(x, y / dense) for x, y in points] for name, points in points_of(result, text.name).items()}
    draw = partial(draw_lines, lines=lines, across=ACROSS, up="perplexity, times dense",
                   best=best.name if best else None)  # fmt: skip
    rows = formatted(table_of(result, text.name), "")
    values = [one for _, one in table_of(result, text.name)[1:]]
    lowest = [min((v for v in column if v is not None), default=math.nan) for column in zip(*values, strict=True)]
    shine = frozenset((r + 1, c + 1) for r, row in enumerate(values) for c, v in enumerate(row) if v == lowest[c])
    blocks: list[Block] = [
        Picture(svg(f"text{number}", f"Perplexity on {text.name}", WIDTH, _height(result), draw)),
        Grid(headings, rows, "Perplexity", shine),
    ]
    if any(one.agreement for one in result.measurements):
        blocks.append(Grid(headings, agreement_rows(result, text.name), AGREEMENT))
    return Section(text.name, blocks, f"{text.windows} windows of {text.seqlen} tokens.")


def _tasks(result: Comparison) -> Iterator[Block]:
    """The first says most: of several tasks it is their mean."""
    if not result.dense_tasks or not result.measurements:
        return
    first, *_ = result.dense_tasks
    draw = partial(draw_lines, lines=task_points(result, 0), across=ACROSS, up=f"{first.task} ({first.metric})",
                   base=first.score, log=False)  # fmt: skip
    yield Picture(svg("tasks", "Scores by layers removed", WIDTH, _height(result), draw))
    yield Grid(task_columns(result), task_rows(result))


def _height(result: Comparison) -> float:
    return (2.6 if len(result.layers) > 1 else 1.0) + 0.22 * len(result.arms)


def _strips(result: Comparison) -> Iterator[Block]:
    for arm in result.arms:
        found = [one for n in result.layers if (one := result.measurement(arm, n)) is not None]
        if found:
            order = {layer: number for number, layer in enumerate(found[-1].removed, start=1)}
            yield Strip(arm.name, [("gone", str(layer), str(order[layer])) if layer in order else
                                   ("kept", str(layer), "kept") for layer in range(result.num_layers)])  # fmt: skip


def _work(result: Comparison) -> Iterator[Block]:
    if result.work:
        parts = {one.arm.name: one.seconds for one in result.work}
        draw = partial(draw_seconds, parts=parts, said=SECONDS)
        yield Picture(svg("work", "Seconds of each way", WIDTH, 0.9 + 0.26 * len(parts), draw))
        yield Grid(WORK_COLUMNS, work_rows(result))


def _again(result: Comparison) -> Iterator[Block]:
    if result.command is not None:
        yield Command(result.command)
    yield Facts([
        ("seed", result.options.get("seed", "")),
        ("calibration", f"SHA-256 of its windows {result.calibration.digest}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in result.versions.items())),
    ])  # fmt: skip
