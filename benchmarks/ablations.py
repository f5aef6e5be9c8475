"""The four ablations of the paper on the bundled model: one-shot or iterative, with and without compensation.

    python -m benchmarks.ablations --layers 1 4 8 --out benchmarks/results

Writes ``ablations.json`` and ``ablations.md``. Calibration and evaluation texts are the bundled ones.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

import prunecomp
from prunecomp.compare import Arm, Comparison

MODEL = Path(__file__).parent.parent / "examples" / "reference_model"
ABLATIONS = {
    "one-shot": Arm("bi", "none", one_shot=True),
    "one-shot + compensation": Arm("bi", "scale", one_shot=True),
    "iterative": Arm("bi", "none"),
    "iterative + compensation (Prune&Comp)": Arm("bi", "scale"),
}
TEXT = "evaluation"


def row(result: Comparison, arm: Arm, layers: int) -> dict[str, Any]:
    measured = result.measurement(arm, layers)
    assert measured is not None
    return {
        "layers": layers,
        "one_shot": arm.one_shot,
        "compensation": arm.compensation,
        "removed": measured.removed,
        "scales": measured.scales,
        "dense": result.dense[TEXT],
        "pruned": measured.perplexity[TEXT],
        "layer_forwards": measured.layer_forwards,
        "seconds": round(measured.seconds, 2),
    }


def markdown(rows: list[dict[str, Any]], counts: list[int]) -> str:
    lines = [
        "| ablation | " + " | ".join(f"N = {n}" for n in counts) + " |",
        "| --- |" + " ---: |" * len(counts),
        f"| dense | {' | '.join(format(rows[0]['dense'], '.2f') for _ in counts)} |",
    ]
    for name, arm in ABLATIONS.items():
        cells = [
            format(row["pruned"], ".2f")
            for n in counts
            for row in rows
            if (row["layers"], row["one_shot"], row["compensation"]) == (n, arm.one_shot, arm.compensation)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    result = prunecomp.compare(
        MODEL,
        options.layers,
        MODEL / "calibration.txt",
        preset="paper-table5",
        eval={TEXT: MODEL / "evaluation.txt"},
        on_measured=lambda so_far: print(f"{len(so_far.measurements)} measured", flush=True),
    )
    rows = [row(result, arm, layers) for layers in options.layers for arm in ABLATIONS.values()]
    summary = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(result.seconds, 2),
        "window_forwards": result.window_forwards,
        "window_forwards_separately": result.window_forwards_separately,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ablations.json").write_text(json.dumps({**summary, "rows": rows}, indent=1) + "\n")
    (options.out / "ablations.md").write_text(markdown(rows, options.layers))
    print(markdown(rows, options.layers))


if __name__ == "__main__":
    main()
