"""Metrics and compensations compared on the bundled model: its own held-out text, and WikiText-2 test if it is given.

    python -m benchmarks.methods --wikitext wikitext2-test.txt --out benchmarks/results/methods

Four metrics with nothing, the paper's scale and the linear repair, and two compensations that compare losses. The text
of WikiText-2 test (as its lines stand, joined) is not in the repository; its first ``--characters`` are used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

import prunecomp
from prunecomp.compare import Arm, grid
from prunecomp.io.progress import told
from prunecomp.report.comparison import comparison_tables, save_record, save_tables
from prunecomp.report.plots import save_plots

MODEL = Path(__file__).parent.parent / "examples" / "reference_model"
METRICS = ("bi", "ppl", "taylor", "magnitude")
COMPENSATIONS = ("none", "scale", "lsq")
OTHERS = ("search",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--wikitext", type=Path)
    parser.add_argument("--characters", type=int, default=130_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "methods")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    texts = {"own held-out text": MODEL / "evaluation.txt"}
    if options.wikitext is not None:
        part = options.out / "wikitext2-test-part.txt"
        part.write_text(options.wikitext.read_text(encoding="utf-8")[: options.characters], encoding="utf-8")
        texts["WikiText-2 test, first part"] = part
    try:
        result = prunecomp.compare(
            MODEL,
            options.layers,
            MODEL / "calibration.txt",
            arms=[*grid(METRICS, COMPENSATIONS), *(Arm("bi", name) for name in OTHERS)],
            samples=options.samples,
            eval=texts,
            on_measured=lambda so_far: save_record(so_far, options.out),
            progress=told(),
        )
    finally:
        (options.out / "wikitext2-test-part.txt").unlink(missing_ok=True)
    save_record(result, options.out)
    save_tables(result, options.out)
    save_plots(result, options.out)
    for table in comparison_tables(result):
        Console().print(table)


if __name__ == "__main__":
    main()
