"""The paper's ablations and every compensation on a real model, judged on four kinds of text.

    python -m benchmarks.real models/SmolLM2-135M-Instruct --calibration wikitext2-valid.txt \
        --wikitext wikitext2-test.txt --books books.txt --out benchmarks/results/real/smollm2-wikitext

Each metric is a comparison of its own (:func:`prunecomp.compare`), in a folder under ``--out`` that holds every cell as
soon as it is measured; a second call goes on with the arms that are not complete. The last act, and all that
``--tables`` does, is to write tables and plots of what is there.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import prunecomp
from benchmarks.real.tables import write_report
from benchmarks.real.texts import add_arguments, judged_on
from prunecomp.compare import Arm, Comparison, grid
from prunecomp.compensation import COMPENSATIONS
from prunecomp.report.comparison import RECORD, load_record, save_record

METRICS = ("bi", "span", "magnitude", "taylor", "ppl")
"""Cheap ones first. The paper's names are BI, CL, Mag+, Taylor+ and PPL."""


def stages(names: list[str]) -> dict[str, list[Arm]]:
    """What is compared under each name: a metric's four ablations, or every compensation under block influence."""
    ablations = {metric: grid([metric], ["none", "scale"], [True, False]) for metric in METRICS}
    known = {**ablations, "compensations": grid(["bi"], COMPENSATIONS)}
    return {name: known[name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--calibration", type=Path, required=True, help="a text; its windows are drawn at random")
    parser.add_argument("--stages", nargs="+", default=[*METRICS, "compensations"], choices=[*METRICS, "compensations"])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 3, 5, 8, 10])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not options.tables:
        texts = judged_on(options, options.seqlen)
        for name, arms in stages(options.stages).items():
            measure(options, options.out / name, arms, texts)
    write_report(options.out)


def measure(options: argparse.Namespace, folder: Path, arms: list[Arm], texts: dict[str, np.ndarray]) -> None:
    started = time.perf_counter()

    def keep(so_far: Comparison) -> None:
        save_record(without_paths(so_far), folder)
        print(f"{folder.name}: {len(so_far.measurements)} cells, {time.perf_counter() - started:.0f} s", flush=True)

    result = prunecomp.compare(
        options.model,
        options.layers,
        options.calibration,
        arms=arms,
        eval=texts,
        samples=options.samples,
        seqlen=options.seqlen,
        dtype=options.dtype,
        device_memory=4 * 10**9,
        compile="off",
        earlier=load_record(folder) if (folder / RECORD).exists() else None,
        on_measured=keep,
    )
    save_record(without_paths(result), folder)


def without_paths(result: Comparison) -> Comparison:
    """The same with names where folders of this machine stood; digests say what model and windows were."""
    source = Path(result.calibration.source).name
    return replace(result, model=Path(result.model).name, calibration=replace(result.calibration, source=source))


if __name__ == "__main__":
    main()
