"""What looking at weights costs, on the shapes of real models: finite or not, and digests; and products in each dtype.

    python -m benchmarks.bench_checks --out benchmarks/results/checks_cpu.json

Rivals take turns within one process, and it is the processor's time of this thread that is counted, so that other load
on the machine does not enter; the share of the wall clock that it had is given beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.bench_engine import processor
from prunecomp.model.weights import all_finite, tensor_digest

SHAPES = {"SmolLM2 135M down_proj": (576, 1536), "Llama 8B o_proj": (4096, 4096)}
TOKENS = 256


def in_turns(rivals: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, dict[str, float]]:
    """Milliseconds of this thread's processor time, by quantile, and what share of the wall clock that was."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    wall = dict.fromkeys(rivals, 0.0)
    for repetition in range(repetitions + 1):
        for name, call in rivals.items():
            began, used = time.perf_counter(), time.thread_time()
            call()
            used, passed = time.thread_time() - used, time.perf_counter() - began
            if repetition:  # the first one warms up
                times[name].append(used * 1e3)
                wall[name] += passed * 1e3
    return {
        name: {
            "median_ms": statistics.median(each),
            "low_ms": statistics.quantiles(each, n=5)[0],
            "high_ms": statistics.quantiles(each, n=5)[-1],
            "share_of_wall": sum(each) / wall[name],
        }
        for name, each in times.items()
    }


def checks(repetitions: int) -> list[dict[str, Any]]:
    found = []
    for name, shape in SHAPES.items():
        for dtype in (torch.bfloat16, torch.float32):
            weight = torch.randn(shape).to(dtype)
            rivals: dict[str, Callable[[], object]] = {
                "isfinite().all()": lambda weight=weight: bool(torch.isfinite(weight).all()),
                "all_finite": lambda weight=weight: all_finite(weight),
                "SHA-256": lambda weight=weight: tensor_digest(weight),
                "BLAKE2b": lambda weight=weight: hashlib.blake2b(weight.view(torch.uint8).numpy()).digest(),
                "copy": lambda weight=weight: weight.clone(),
            }
            found.append({"weight": name, "dtype": str(dtype), "bytes": weight.nbytes, **in_turns(rivals, repetitions)})
    return found


def products(repetitions: int) -> list[dict[str, Any]]:
    """Linear maps of the MLPs, in each dtype."""
    found = []
    for name, (out, into) in SHAPES.items():
        rivals = {}
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x, weight = torch.randn(TOKENS, into).to(dtype), torch.randn(out, into).to(dtype)
            rivals[str(dtype)] = lambda x=x, weight=weight: functional.linear(x, weight)
        rows: dict[str, Any] = in_turns(rivals, repetitions)
        for row in rows.values():
            row["gflops_per_second"] = 2 * TOKENS * out * into / row["median_ms"] / 1e6
        found.append({"weight": name, **rows})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result = {
        "machine": processor(), "threads": 1, "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "checks": checks(options.repetitions), "products": products(options.repetitions),
    }  # fmt: skip
    text = json.dumps(result, indent=1) + "\n"
    if options.out is not None:
        options.out.write_text(text)
    for row in result["checks"]:
        times = {name: f"{value['median_ms']:.2f}" for name, value in row.items() if isinstance(value, dict)}
        print(row["weight"], row["dtype"], times)
    for row in result["products"]:
        print(row["weight"], {name: f"{v['gflops_per_second']:.0f}" for name, v in row.items() if isinstance(v, dict)})


if __name__ == "__main__":
    main()
