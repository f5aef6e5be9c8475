"""A comparison as pictures in files."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from prunecomp.compare import Arm, ArmWork, Comparison
from prunecomp.errors import OutputError
from prunecomp.pruning.journal import write_whole
from prunecomp.report.drawing import check_matplotlib, colours, label, new_figure, whatever_the_font
from prunecomp.report.figures import Lines, lines_on

COLUMNS = 2
"""Of pictures: a strip of four would be too wide to be read."""


def save_plots(result: Comparison, folder: Path) -> list[Path]:
    """Draw perplexities, scores in tasks, layer-forwards and seconds into PNG files. Raises :class:`OptionError`
    without matplotlib."""
    check_matplotlib()
    drawn = {
        "perplexity.png": perplexity_figure(result),
        "layer_forwards.png": work_figure(result, "layer_forwards", "passes of the calibration set through a layer"),
        "seconds.png": work_figure(result, "seconds", SECONDS),
        **({"tasks.png": tasks_figure(result)} if result.dense_tasks else {}),
    }
    try:
        with whatever_the_font():
            for name, figure in drawn.items():
                drawing = BytesIO()
                figure.savefig(drawing, format="png", dpi=150)
                write_whole(folder / name, drawing.getvalue())
    except OSError as error:
        raise OutputError(f"{folder} cannot be written to: {error}") from error
    return [folder / name for name in drawn]


SECONDS = "seconds for scores and compensations, had the arm run alone"


def points_of(result: Comparison, text: str) -> dict[str, list[tuple[float, float]]]:
    """Perplexity on a text by layers removed, for each arm by name; the dense model's first."""
    return {arm.name: [(0.0, result.dense[text]), *((float(n), one.perplexity[text]) for n in result.layers
                       if (one := result.measurement(arm, n)) is not None)] for arm in result.arms}  # fmt: skip


def best_of(result: Comparison, text: str) -> Arm | None:
    """The arm with the lowest perplexity on a text after the most removals that were measured."""
    for count in reversed(result.layers):
        found = {
            arm: one.perplexity[text] for arm in result.arms if (one := result.measurement(arm, count)) is not None
        }
        if found:
            return min(found, key=lambda arm: found[arm])
    return None


def task_points(result: Comparison, number: int) -> dict[str, list[tuple[float, float]]]:
    """The same of scores in a task, by its number among those of the dense model."""
    return {arm.name: [(0.0, result.dense_tasks[number].score), *((float(n), one.tasks[number].score)
                       for n in result.layers if (one := result.measurement(arm, n)) is not None)]
            for arm in result.arms}  # fmt: skip


def tasks_figure(result: Comparison) -> Any:
    """:func:`panels_figure` of all arms."""
    names = [f"{one.task} ({one.metric})" for one in result.dense_tasks]
    lines = {name: task_points(result, number) for number, name in enumerate(names)}
    dense = {name: one.score for name, one in zip(names, result.dense_tasks, strict=True)}
    return panels_figure(lines, {}, dense, result.num_layers, up="score", log=False)


def perplexity_figure(result: Comparison) -> Any:
    """:func:`panels_figure` of all arms."""
    names = [text.name for text in result.texts]
    best = {name: arm.name for name in names if (arm := best_of(result, name)) is not None}
    return panels_figure({name: points_of(result, name) for name in names}, best, result.dense, result.num_layers)


def panels_figure(
    lines: Mapping[str, Lines],
    best: Mapping[str, str],
    dense: Mapping[str, float],
    num_layers: int,
    *,
    up: str = "perplexity",
    log: bool = True,
) -> Any:
    """Something against layers removed, one picture a text or task, two by two; the best arm of each stands out."""
    columns = min(COLUMNS, len(lines))
    rows = -(-len(lines) // columns)
    arms = max(map(len, lines.values()))
    figure = new_figure(width=5.4 * columns + 2.6, height=max(4.4, 1.0 + 0.2 * arms) * rows)
    for number, (text, points) in enumerate(lines.items(), start=1):
        axes, winner = figure.add_subplot(rows, columns, number), best.get(text)
        lines_on(axes, points, f"of {num_layers} layers removed", up, winner, dense[text], log)
        axes.set_title(label(text) + (f"\nbest: {label(winner)}" if winner else ""), fontsize="medium")
    if axes.get_lines()[1:]:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return figure


def work_figure(result: Comparison, name: str, said: str) -> Any:
    """One bar an arm, in the order of the tables."""
    figure = new_figure(width=7.0, height=1.2 + 0.3 * len(result.work))
    axes = figure.subplots()
    work: list[ArmWork] = list(reversed(result.work))  # bars are drawn from below
    bars = axes.barh([label(one.arm.name) for one in work], [getattr(one, name) for one in work], color=colours(1))
    axes.bar_label(bars, fmt="{:,.4g}", padding=3, fontsize="small")
    axes.margins(x=0.12)
    axes.set_xlabel(said)
    return figure
