"""The whole command on a GPU, from start to exit: an 8B shape is read, pruned by five layers, exported and verified.

    python -m benchmarks.bench_command_gpu --base /dev/shm --out-folder /tmp --out results.json

Weights are random, layers go in the order that a trained model of this shape gives. Beside the command's own account of
its seconds stand what the folder of the export takes for as many bytes, written and synchronised, and what
the same command takes with the repair that it has by default. Needs 16 GB in ``--base`` and 27 in ``--out-folder``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from benchmarks.bench_engine_gpu import DEVICE, LLAMA_8B, ORDER, fill, write
from benchmarks.gpu_timing import machine, require_gpu
from prunecomp.engine.rates import write_rate
from prunecomp.model.loader import build_skeleton

PAPER = ["--preset", "paper"]
WAYS = {"paper": PAPER, "paper, compiled": [*PAPER, "--compile", "on"], "default repair": ["--compile", "off"]}


def make_base(folder: Path, config: dict[str, Any]) -> int:
    """A checkpoint of random weights; its bytes."""
    model: Any = build_skeleton(AutoConfig.for_model("llama", **config), torch.bfloat16)
    fill(model, DEVICE)
    model.save_pretrained(folder, max_shard_size="5GB")
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def command(base: Path, tokens: Path, out: Path, order: list[int], samples: int, more: list[str]) -> dict[str, Any]:
    words = [sys.executable, "-m", "prunecomp", "prune", str(base), "--layers", str(len(order)), "--calibration"]
    words += [str(tokens), "--samples", str(samples), "--metric", "given", "--given", ",".join(map(str, order))]
    words += ["--device", DEVICE.type, "--out", str(out), *more]
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        return {"error": done.stderr[-2000:], "seconds": seconds}
    record = json.loads((out / "prunecomp.json").read_text())
    return {
        "seconds": seconds,
        "removed": record["removed"],
        "cost": record["cost"],
        "record_seconds": record["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("/dev/shm"), help="where the checkpoint is made")
    parser.add_argument("--out-folder", type=Path, default=Path("/tmp"), help="where exports go")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    require_gpu()
    result: dict[str, Any] = {"machine": machine(), "samples": options.samples, "seqlen": options.seqlen}
    with (
        tempfile.TemporaryDirectory(dir=options.base) as place,
        tempfile.TemporaryDirectory(dir=options.out_folder) as to,
    ):
        base, tokens = Path(place) / "base", Path(place) / "tokens.npy"
        result["base_bytes"] = make_base(base, LLAMA_8B)
        torch.cuda.empty_cache()
        result["disk_bytes_per_second"] = write_rate(Path(to), 2048)
        drawn = np.random.default_rng(0).integers(0, LLAMA_8B["vocab_size"], (options.samples, options.seqlen))
        np.save(tokens, drawn)
        for way in options.ways:
            out = Path(to) / "pruned"
            result[way] = command(base, tokens, out, ORDER, options.samples, WAYS[way])
            shutil.rmtree(out, ignore_errors=True)
            write(options.out, result)


if __name__ == "__main__":
    main()
