"""The four ablations of the paper on the bundled model: one-shot or iterative, with and without compensation.

    python -m benchmarks.ablations --layers 1 4 8 --out benchmarks/results

Writes ``ablations.json`` and ``ablations.md``. Calibration and evaluation texts are the bundled ones.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch

import prunecomp

MODEL = Path(__file__).parent.parent / "examples" / "reference_model"
ABLATIONS = {
    "one-shot": (True, "none"),
    "one-shot + compensation": (True, "scale"),
    "iterative": (False, "none"),
    "iterative + compensation (Prune&Comp)": (False, "scale"),
}


def measure(layers: int, one_shot: bool, compensation: str) -> dict[str, object]:
    result = prunecomp.prune(
        MODEL,
        layers,
        MODEL / "calibration.txt",
        one_shot=one_shot,
        compensation=compensation,
        eval=MODEL / "evaluation.txt",
    )
    assert result.perplexity is not None
    return {
        "layers": layers,
        "one_shot": one_shot,
        "compensation": compensation,
        "removed": result.removed,
        "scales": result.scales,
        "dense": result.perplexity["dense"],
        "pruned": result.perplexity["pruned"],
        "layer_forwards": result.layer_forwards,
        "seconds": round(result.seconds, 2),
    }


def markdown(rows: list[dict[str, object]], counts: list[int]) -> str:
    lines = [
        "| ablation | " + " | ".join(f"N = {n}" for n in counts) + " |",
        "| --- |" + " ---: |" * len(counts),
        f"| dense | {' | '.join(format(rows[0]['dense'], '.2f') for _ in counts)} |",
    ]
    for name, (one_shot, compensation) in ABLATIONS.items():
        cells = [
            format(row["pruned"], ".2f")
            for n in counts
            for row in rows
            if (row["layers"], row["one_shot"], row["compensation"]) == (n, one_shot, compensation)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = []
    for layers in options.layers:
        for one_shot, compensation in ABLATIONS.values():
            rows.append(measure(layers, one_shot, compensation))
            print(rows[-1], flush=True)
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ablations.json").write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")
    (options.out / "ablations.md").write_text(markdown(rows, options.layers))
    print(markdown(rows, options.layers))


if __name__ == "__main__":
    main()
