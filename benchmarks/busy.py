"""What other work on the same cores takes from a run, and whether a setting of the threads takes less.

    python -m benchmarks.busy [--repeats 3]

Each run is a process of its own (:mod:`benchmarks.growth_run`: random weights, 12 layers of SmolLM2-135M's shape),
beside nothing, beside loops that keep one core or all of them busy, or beside a second run like it. "Fair" is what a
scheduler that gives every thread the same leaves: with c cores, t threads and k loops (t + k) / c times the seconds of
a quiet run, or those seconds where there are cores for all. Repeats take turns, medians are given; ``busy_cpu.json``
and ``busy_cpu.md`` are written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_engine import processor
from benchmarks.growth_run import Point, measure
from prunecomp.io.escape import markdown_table
from prunecomp.io.plain import json_text
from prunecomp.pruning.journal import write_whole

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "OMP_WAIT_POLICY=active": {"OMP_WAIT_POLICY": "active"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
LOADS = {"nothing": 0, "one core busy": 1, "all cores busy": CORES}
SECOND_RUN = "a second run"
POINT = Point("busy", 12, 3, 32, 128)


def started(setting: dict[str, str]) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    threads = {"OMP_NUM_THREADS": str(CORES), **setting}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.busy", "--alone"], env={**os.environ, **threads}, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def seconds_of(run: subprocess.Popen[str]) -> float:
    told, _ = run.communicate()
    if run.returncode:
        raise SystemExit(f"a run failed with exit code {run.returncode}")
    return float(json.loads(told.splitlines()[-1])["seconds"])


def beside(load: str, setting: dict[str, str]) -> float:
    """Seconds of a run with ``setting`` beside ``load``."""
    if load == SECOND_RUN:
        return statistics.mean([seconds_of(run) for run in [started(setting), started(setting)]])
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(LOADS[load])]
    try:
        return seconds_of(started(setting))
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def fair(load: str, threads: int) -> float:
    """How many times longer than alone a run takes that loses no more than its share."""
    others = threads if load == SECOND_RUN else LOADS[load]
    return max(1.0, (threads + others) / CORES) / max(1.0, threads / CORES)


def rows_of(seconds: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """A row a setting: seconds beside nothing, then how many times as long beside each load, and what is fair."""
    rows = []
    for setting, found in seconds.items():
        threads = int(SETTINGS[setting].get("OMP_NUM_THREADS", CORES))
        alone = statistics.median(found["nothing"])
        rows.append([
            setting, f"{alone:.1f}",
            *(f"{statistics.median(found[load]) / alone:.2f} ({fair(load, threads):.2f})"
              for load in found if load != "nothing"),
        ])  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure(POINT, int(os.environ["OMP_NUM_THREADS"]))))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    loads = [*LOADS, SECOND_RUN]
    seconds: dict[str, dict[str, list[float]]] = {setting: {load: [] for load in loads} for setting in SETTINGS}
    for _ in range(options.repeats):
        for load in loads:
            for setting, found in seconds.items():
                found[load].append(beside(load, SETTINGS[setting]))
                print(f"{load}, {setting}: {found[load][-1]:.1f} s", flush=True)
    result: dict[str, Any] = {"machine": processor(), "cores": CORES, "torch": torch.__version__, "seconds": seconds}
    write_whole(options.out / "busy_cpu.json", f"{json_text(result)}\n".encode())
    headings = ["threads", "alone, s", *(f"beside {load}: times as long (fair)" for load in loads[1:])]
    table = "\n".join(markdown_table(headings, rows_of(seconds)))
    write_whole(options.out / "busy_cpu.md", f"{table}\n".encode())
    print(table)


if __name__ == "__main__":
    main()
