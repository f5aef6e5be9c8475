"""How a pruning run grows: time and peak memory against layers removed, windows, their length, and the model's size.

    OMP_NUM_THREADS=2 python -m benchmarks.growth [--repeats 3] [--only windows length] [--trial]

Each run is a process of its own, so that the peak is its own; repeats take turns, and medians are given. Models have
random weights, about SmolLM2's 135M shape with fewer layers. As random weights would lose their top layers, which
leaves next to nothing to run again, layers go in an order that SmolLM2 gives, through the same code. Time is that of
``prunecomp.prune`` alone, memory what the process held at most beyond what it held before there was a model.

One more series sets a run from a checkpoint with ``device_memory`` at a quarter of what a run without it plans, whose
weights must then be streamed, beside that run; there the peak has the pages of the checkpoint's file that are mapped,
which the system may take back. All takes some nine minutes where two cores make 100 GFLOP/s; ``--trial`` has the two
smallest points of each series, once. ``growth_cpu.json`` is written after every run, and at the end a table and a
picture beside it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_engine import processor
from benchmarks.growth_run import ORDER, VOCABULARY, Point, alone, measure, save
from prunecomp.io.escape import markdown_table
from prunecomp.io.plain import json_text
from prunecomp.pruning.journal import write_whole
from prunecomp.report.drawing import colours, log_axis, new_figure

QUARTER, QUARTER_DISK = "a quarter", "a quarter, states on disk"
AXES = {
    "removed": "layers removed of 18", "windows": "windows of 64 tokens", "length": "tokens of a window, of 4",
    "size": "million weights, 6 layers",
}  # fmt: skip
MEASURES = {"seconds": "seconds", "peak_bytes": "peak memory beyond the process"}


def points() -> list[Point]:
    """All, curve by curve, the smallest first."""
    return [
        *(Point("removed", 18, removed, 8, 128) for removed in (1, 2, 3, 5, 8, 12, 15)),
        *(Point("windows", 6, 3, windows, 64) for windows in (8, 32, 128, 512)),
        *(Point("length", 6, 3, 4, length) for length in (128, 512, 1024, 2048, 4096)),
        *(Point("size", 6, 3, 32, 128, shape) for shape in ("135M", "twice", "four times")),
        *(Point("budget", 24, 3, 16, 128, budget=budget) for budget in ("", QUARTER, QUARTER_DISK)),
    ]


def size_of(row: dict[str, Any]) -> float:
    """Where a point stands on its curve."""
    named = {"removed": row["removed"], "windows": row["windows"], "length": row["seqlen"]}
    return float(named.get(row["series"], row["weights"] / 1e6))


def rows_of(runs: Sequence[tuple[Point, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row a point from all its runs: each measure's values and their median, and what is the same in all of them."""
    rows = []
    for point in dict.fromkeys(point for point, _ in runs):
        found = [run for other, run in runs if other == point]
        row = {name: value for name, value in asdict(point).items() if name not in ("checkpoint", "disk")} | found[-1]
        for name in (*MEASURES, "processor_seconds"):
            row[name] = [run[name] for run in found]
            row[f"median_{name}"] = statistics.median(row[name])
        rows.append({**row, "x": size_of(row)})
    return rows


def exponents(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For neighbours on a curve how the logarithm of time, memory and FLOPs grows with that of the size.

    A measure is above linear ``surely`` where the least of the larger point over the most of the smaller one is, and
    ``perhaps`` where that of the medians is.
    """
    found = []
    for low, high in pairwise(rows):
        if low["series"] != high["series"] or low["series"] not in AXES:
            continue
        span = math.log(high["x"] / low["x"])
        one: dict[str, Any] = {"series": low["series"], "from": low["x"], "to": high["x"]}
        one["flops"] = math.log(high["flops"] / low["flops"]) / span
        for name in MEASURES:
            one[name] = math.log(high[f"median_{name}"] / low[f"median_{name}"]) / span
            least = math.log(min(high[name]) / max(low[name])) / span
            one[f"{name}_above_linear"] = "surely" if least > 1 else "perhaps" if one[name] > 1 else "no"
        found.append(one)
    return found


def budgeted(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Time of each run on a quarter over that of the run that has all, of medians."""
    row = {row["budget"]: row for row in rows if row["series"] == "budget"}
    return {name: row[name]["median_seconds"] / row[""]["median_seconds"] for name in row if name}


def markdown(result: dict[str, Any]) -> str:
    rows, slopes = result["points"], result["exponents"]
    lines = markdown_table(
        ["curve", "size", "seconds (least to most)", "of the processor", "GFLOP/s", "layer-forwards", "peak, MB",
         "planned, MB"],
        [
            [row["series"] + (row["budget"] and ", " + row["budget"]), f"{row['x']:,.4g}",
             f"{row['median_seconds']:.2f} ({min(row['seconds']):.2f} to {max(row['seconds']):.2f})",
             f"{row['median_processor_seconds']:.2f}",
             f"{row['flops'] / row['median_seconds'] / 1e9:.0f}", f"{row['layer_forwards']:g}",
             f"{row['median_peak_bytes'] / 1e6:.0f}", f"{row['planned_bytes'] / 1e6:.0f}"]
            for row in rows
        ],
    )  # fmt: skip
    lines += ["", "Exponents, the slope of logarithms between neighbours, and whether they are above linear:", ""]
    lines += markdown_table(
        ["curve", "from", "to", "FLOPs", "seconds", "above", "peak memory", "above"],
        [
            [one["series"], f"{one['from']:,.4g}", f"{one['to']:,.4g}", f"{one['flops']:.2f}", f"{one['seconds']:.2f}",
             one["seconds_above_linear"], f"{one['peak_bytes']:.2f}", one["peak_bytes_above_linear"]]
            for one in slopes
        ],
    )  # fmt: skip
    lines += ["", *(f"{name}: {ratio:.2f} times the seconds of a run that has all." for name, ratio in
                    result["budgeted_over_unbudgeted"].items())]  # fmt: skip
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[dict[str, Any]]) -> Any:
    """A column a curve, time over memory, in logarithms, with a line of slope 1 through the first point."""
    series = [name for name in AXES if any(row["series"] == name for row in rows)]
    figure = new_figure(width=3.4 * len(series), height=5.6)
    panels = figure.subplots(len(MEASURES), len(series), squeeze=False)
    for line, (measure_name, said) in enumerate(MEASURES.items()):
        unit = 1e6 if measure_name == "peak_bytes" else 1.0
        for column, name in enumerate(series):
            axes, found = panels[line][column], [row for row in rows if row["series"] == name]
            xs = [row["x"] for row in found]
            ys = [row[f"median_{measure_name}"] / unit for row in found]
            ends = [[y - min(row[measure_name]) / unit for y, row in zip(ys, found, strict=True)],
                    [max(row[measure_name]) / unit - y for y, row in zip(ys, found, strict=True)]]  # fmt: skip
            axes.errorbar(xs, ys, yerr=ends, color=colours(1)[0], marker="o", markersize=4, capsize=2, label="measured")
            axes.plot(xs, [ys[0] * x / xs[0] for x in xs], color="0.5", linestyle=":", label="linear")
            axes.set_xscale("log")
            axes.set_xticks(xs, [f"{x:,.3g}" if x < 100 else f"{x:.0f}" for x in xs])
            axes.minorticks_off()
            log_axis(axes)
            axes.grid(linewidth=0.3)
            axes.set_xlabel(AXES[name])
            if column == 0:
                axes.set_ylabel(said + (", MB" if unit > 1 else ""))
    panels[0][0].legend(fontsize="small", frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=[*AXES, "budget"], default=[*AXES, "budget"], help="curves")
    parser.add_argument("--trial", action="store_true", help="the two smallest points of each curve, once")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        measured(options, Path(place))


def measured(options: argparse.Namespace, place: Path) -> None:
    chosen = [point for point in points() if point.series in options.only]
    if options.trial:
        chosen = [point for number, point in enumerate(chosen)
                  if [other.series for other in chosen[:number]].count(point.series) < 2]  # fmt: skip
    started, runs = time.perf_counter(), []
    result: dict[str, Any] = {
        "machine": processor(), "threads": options.threads, "torch": torch.__version__, "dtype": "float32",
        "capability": torch.backends.cpu.get_cpu_capability(), "vocabulary": VOCABULARY, "order": ORDER,
    }  # fmt: skip
    checkpoint, planned = "", 0
    for repeat in range(1 if options.trial else options.repeats):
        for number, point in enumerate(chosen):
            if point.series == "budget":
                checkpoint = checkpoint or str(place / "model")
                if not Path(checkpoint).exists():
                    alone(save, point, checkpoint)
                limit, disk = planned // 4 if point.budget else None, str(place)
                point = chosen[number] = replace(
                    point,
                    checkpoint=checkpoint,
                    device_memory=limit,
                    disk=disk if point.budget == QUARTER_DISK else None,
                )
            run = alone(measure, point, options.threads)
            if point.series == "budget":
                planned = planned or run["planned_bytes"]
                assert run["streamed"] == bool(point.budget), "on a quarter weights are streamed, and on all of it not"
            runs.append((point, run))
            rows = rows_of(runs)
            result |= {
                "points": rows, "exponents": exponents(rows), "budgeted_over_unbudgeted": budgeted(rows),
                "whole_seconds": time.perf_counter() - started,
            }  # fmt: skip
            write_whole(options.out / "growth_cpu.json", f"{json_text(result)}\n".encode())
            print(f"{repeat + 1}: {point.series} {rows[number]['x']:g} {point.budget} {run['seconds']:.2f} s, "
                  f"{run['peak_bytes'] / 1e6:.0f} MB", flush=True)  # fmt: skip
    table = markdown(result)
    write_whole(options.out / "growth_cpu.md", table.encode())
    if set(AXES) & set(options.only):
        draw(result["points"]).savefig(options.out / "growth_cpu.png", dpi=110)
    print(table)


if __name__ == "__main__":
    main()
