"""Leave-one-out rounds against SLEB's flow on the bundled model: the same choices, layer-forwards and seconds of both.

    python -m benchmarks.bench_ppl --layers 3 --repeats 3

SLEB removes without compensation, so ours does here too. Both run in float32 on equal windows, alternating in one
process; seconds are medians. Floors: candidates x (survivors - 1) layer-forwards a round when every model is run whole,
half of that when each candidate's stream begins where its layer is left out; ours adds the pass that scores and scales
need, and saves what candidate streams kept from the last round have behind them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import prunecomp
from benchmarks.baselines import sleb

MODEL = Path(__file__).parent.parent / "examples" / "reference_model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    windows = prunecomp.prune(
        MODEL,
        1,
        MODEL / "calibration.txt",
        samples=options.samples,
        seqlen=options.seqlen,
        metric="last",
        preset="paper",
    ).calibration.tokens
    seconds: dict[str, list[float]] = {"ours": [], "sleb": []}
    for _ in range(options.repeats):
        started = time.perf_counter()
        ours = prunecomp.prune(model, options.layers, windows, metric="ppl", compensation="none", preset="paper")
        seconds["ours"].append(time.perf_counter() - started)
        started = time.perf_counter()
        theirs = sleb.prune(model, options.layers, windows)
        seconds["sleb"].append(time.perf_counter() - started)
    assert ours.removed == theirs.removed, (ours.removed, theirs.removed)
    result = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "windows": list(windows.shape),
        "removed": ours.removed,
        "layer_forwards": {
            "ours": ours.layer_forwards,
            "ours_by_round": [r.layer_forwards for r in ours.rounds],
            "sleb": theirs.layer_forwards,
        },
        "seconds": {name: round(statistics.median(each), 3) for name, each in seconds.items()},
        "all_seconds": {name: [round(one, 3) for one in each] for name, each in seconds.items()},
        "speedup": round(statistics.median(seconds["sleb"]) / statistics.median(seconds["ours"]), 3),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ppl_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
