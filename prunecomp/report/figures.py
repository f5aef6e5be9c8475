"""The pictures of a report, each drawn on a figure from plain data of a record."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunecomp.report.drawing import colours, label, log_axis, whole_numbers

Lines = Mapping[str, Sequence[tuple[float, float]]]
"""Points (x, y) by name."""

GONE = "0.6"
LOST = "#c00000"
MARKERS = "osD^vPX*<>ph"
DASHES = ("-", "--", ":", "-.")
DENSE: dict[str, Any] = {"color": "0.5", "linewidth": 1.0, "linestyle": (0, (1, 2)), "label": "dense"}


def draw_scores(figure: Any, rounds: Sequence[Mapping[str, Any]], num_layers: int) -> None:
    """The scores of each of ``rounds`` by original layer, those that went marked."""
    rows = [[finite(one["scores"].get(str(layer))) for layer in range(num_layers)] for one in rounds]
    known = [value for row in rows for value in row if math.isfinite(value)]
    spread = min(known) > 0 and max(known) > 4 * min(known)
    axes = figure.add_subplot()
    picture = axes.imshow(rows, aspect="auto", cmap="viridis", norm="log" if spread else "linear", interpolation="none",
                          extent=(-0.5, num_layers - 0.5, len(rows) + 0.5, 0.5))  # fmt: skip
    gone = [(layer, number) for number, one in enumerate(rounds, start=1) for layer in one["block"]]
    axes.scatter(*zip(*gone, strict=True), marker="x", color="white", linewidths=2.6, s=34)
    axes.scatter(*zip(*gone, strict=True), marker="x", color=LOST, linewidths=1.4, s=26)
    axes.set_xlabel("layer of the dense model")
    axes.set_ylabel("round")
    whole_numbers(axes.xaxis)
    whole_numbers(axes.yaxis)
    figure.colorbar(picture, label="score", pad=0.02)


def draw_seam_errors(figure: Any, gaps: Sequence[Mapping[str, Any]]) -> None:
    """How far the stream at each gap is from the dense one, with a scale alone and once fitted."""
    axes = figure.add_subplot()
    places = range(len(gaps))
    for number, (key, said) in enumerate((("error_before", "a scale alone"), ("error_after", "once fitted"))):
        bars = axes.bar([place + 0.38 * number - 0.19 for place in places], [finite(gap[key]) for gap in gaps], 0.36,
                        color=colours(2)[number], label=said)  # fmt: skip
        axes.bar_label(bars, fmt="%.3f", fontsize="small", padding=2)
    axes.set_xticks(list(places), [", ".join(map(str, gap["layers"])) for gap in gaps])
    axes.set_xlabel("layers that went")
    axes.set_ylabel("relative error at the seam")
    axes.margins(y=0.15)
    _legend(figure, axes)


def draw_norms(figure: Any, norms: Sequence[float], removed: Sequence[int]) -> None:
    """The mean norm of what enters each layer of the dense model, and what leaves it."""
    axes = figure.add_subplot()
    for layer in removed:
        axes.axvspan(layer, layer + 1, color=GONE, alpha=0.35, linewidth=0)
    axes.plot(range(len(norms)), norms, marker="o", markersize=3, color=colours(1)[0])
    axes.set_yscale("log")
    axes.set_xlabel("layer that the state enters; shaded: removed")
    axes.set_ylabel("mean norm of a token's state")
    whole_numbers(axes.xaxis)


def draw_probes(figure: Any, models: Sequence[Mapping[str, Any]]) -> None:
    """Scores of the probes with the 95 % interval of the difference to the dense model, which is a mark."""
    axes = figure.add_subplot()
    names = [f"{probe['probe']}, {probe['way']}" for probe in models[0]["probes"]]
    thick = 0.8 / max(1, len(models) - 1)
    for number, (model, colour) in enumerate(zip(models[1:], colours(len(models))[1:], strict=True)):
        probes = model["probes"]
        heights = [place + thick * (number + 0.5) - 0.4 for place in range(len(probes))]
        between = [(probe["dense"] + probe["difference"]["low"], probe["dense"] + probe["difference"]["high"])
                   for probe in probes]  # fmt: skip
        scores = [probe["score"] for probe in probes]
        errors = [[max(0.0, score - low) for score, (low, _) in zip(scores, between, strict=True)],
                  [max(0.0, high - score) for score, (_, high) in zip(scores, between, strict=True)]]  # fmt: skip
        axes.barh(heights, scores, 0.8 * thick, color=colour, label=label(model["name"]), alpha=0.75)
        axes.errorbar(scores, heights, xerr=errors, fmt="none", ecolor="0.45", capsize=2.5, linewidth=1.2)
    dense = [probe["score"] for probe in models[0]["probes"]]
    axes.plot(dense, range(len(dense)), "D", color=colours(1)[0], markersize=5, label=label(models[0]["name"]))
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.06)
    axes.set_xlabel("share of problems solved")
    axes.grid(axis="x", linewidth=0.3)
    _legend(figure, axes)


@dataclass(frozen=True)
class Panel:
    """Points (layers removed, value) beside the ``limit`` of their name; ``missed`` are layers at which it was."""

    name: str
    points: Sequence[tuple[int, float]]
    limit: float
    missed: Collection[int]


def draw_target(figure: Any, panels: Sequence[Panel], taken: int) -> None:
    """One above the other, for each is in a unit of its own; a line at the number of layers that was ``taken``."""
    above = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(above, panels, strict=True):
        axes.plot(*zip(*panel.points, strict=True), marker="o", markersize=4, color=colours(1)[0])
        missed = [point for point in panel.points if point[0] in panel.missed]
        axes.scatter(*zip(*missed, strict=True) if missed else ((), ()), marker="x", color=LOST, s=40, zorder=3)
        axes.axhline(panel.limit, color=LOST, linewidth=1.0)
        axes.axvline(taken, **DENSE)
        axes.set_title(label(panel.name), loc="left", fontsize="small")
        axes.margins(y=0.15)
        known = [value for _, value in panel.points if math.isfinite(value)]
        if known and min(known) > 0 and max(known) > 10 * min(known):
            log_axis(axes)
        axes.grid(linewidth=0.3)
    above[-1].set_xlabel("layers removed")
    whole_numbers(above[-1].xaxis)


def draw_seconds(figure: Any, parts: Mapping[str, float], said: str = "seconds") -> None:
    """One bar a part."""
    axes = figure.add_subplot()
    bars = axes.barh([label(name) for name in parts], list(parts.values()), color=colours(1)[0])
    axes.bar_label(bars, fmt="{:,.1f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.set_xlabel(said)


def draw_lines(
    figure: Any, lines: Lines, across: str, up: str, best: str | None = None, base: float = 1.0, log: bool = True
) -> None:
    """:func:`lines_on` alone on a figure, with a legend where there are several."""
    axes = figure.add_subplot()
    lines_on(axes, lines, across, up, best, base, log)
    if len(lines) > 1 and axes.get_lines():
        _legend(figure, axes)


def lines_on(
    axes: Any,
    lines: Lines,
    across: str,
    up: str,
    best: str | None = None,
    base: float = 1.0,
    log: bool = True,
) -> None:
    """Lines told apart by colour, marker and dash, the ``best`` one thick, over ``base``, what the dense model has.
    With one point each, but for that at 0, a bar for each instead."""
    last = {name: points[-1] for name, points in lines.items() if points and points[-1][0] != 0}
    if len({x for points in lines.values() for x, _ in points if x != 0}) == 1:
        bars = axes.barh(
            [label(name) for name in last], [finite(y) for _, y in last.values()],
            color=[colours(2)[name == best] for name in last],
        )  # fmt: skip
        axes.bar_label(bars, fmt="{:,.4g}", padding=3, fontsize="small")
        axes.axvline(base, **DENSE)
        axes.invert_yaxis()
        axes.margins(x=0.16)
        axes.set_xlabel(f"{up}, {max(x for x, _ in last.values()):g} {across}")
        return
    for number, ((name, points), colour) in enumerate(zip(lines.items(), colours(len(lines)), strict=True)):
        axes.plot(
            [x for x, _ in points], [finite(y) for _, y in points], color=colour, label=label(name),
            marker=MARKERS[number % len(MARKERS)], markersize=5, markerfacecolor=colour if name == best else "none",
            linestyle=DASHES[(number + number // len(MARKERS)) % len(DASHES)], linewidth=2.8 if name == best else 1.2,
            zorder=3 if name == best else 2,
        )  # fmt: skip
    axes.axhline(base, **DENSE)
    if log:
        log_axis(axes)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(linewidth=0.3)
    whole_numbers(axes.xaxis)


def finite(value: Any) -> float:
    """What JSON has as null was no finite number."""
    return value if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _legend(figure: Any, axes: Any) -> None:
    handles, names = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, names)) < 32 else 1
    figure.legend(handles, names, loc="outside upper left", ncols=columns, frameon=False, fontsize="small")
