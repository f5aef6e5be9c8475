"""Where a pass spends its time on a GPU: layers of the 8B shape by micro-batch, eager and compiled, with statistics and
without, and the kernels of one layer.

    python -m benchmarks.bench_layers_gpu --out results.json

Each figure is a sweep over the same windows, in milliseconds a window and layer; its floor is the operations over the
rate of a matrix product measured here. Leaves with code 2 where no GPU is visible.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig

from benchmarks.bench_engine_gpu import DEVICE, LLAMA_8B, fill, one_pass, write
from benchmarks.gpu_timing import machine, matmul_rate, require_gpu
from prunecomp.data.windows import Windows
from prunecomp.engine.placement import Placement, model_shape
from prunecomp.engine.states import Tier
from prunecomp.model.decoder import Decoder
from prunecomp.model.loader import build_skeleton

LAYERS, WINDOWS, SEQLEN, REPEATS = 4, 32, 2048, 3
MICRO_BATCHES = (1, 2, 4, 8)


def sweep(decoder: Decoder, windows: Windows, batch: int, counted: bool) -> float:
    """Median seconds of a sweep."""
    placement = Placement(batch, None, {}, Tier.device, {})
    one_pass(decoder, windows, placement, counted=counted)
    return statistics.median(one_pass(decoder, windows, placement, counted=counted) for _ in range(REPEATS))


def kernels(decoder: Decoder, windows: Windows, batch: int) -> list[dict[str, Any]]:
    """Device milliseconds by kernel, of a sweep with statistics, the longest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        one_pass(decoder, windows, Placement(batch, None, {}, Tier.device, {}))
    rows = sorted(seen.key_averages(), key=lambda event: -event.self_device_time_total)
    return [
        {"kernel": event.key[:120], "ms": event.self_device_time_total / 1e3, "calls": event.count}
        for event in rows[:40]
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    require_gpu()
    torch.manual_seed(0)
    rate = matmul_rate()
    model: Any = build_skeleton(
        AutoConfig.for_model("llama", **{**LLAMA_8B, "num_hidden_layers": LAYERS}), torch.bfloat16
    )
    fill(model, DEVICE)
    windows = Windows(torch.randint(0, LLAMA_8B["vocab_size"], (WINDOWS, SEQLEN)), "random")
    shape = model_shape(model, Decoder(model).family, torch.bfloat16)
    floor = shape.flops(SEQLEN, SEQLEN) / rate * 1e3
    result: dict[str, Any] = {
        "machine": machine(),
        "matmul_tflops_per_second": rate / 1e12,
        "floor_ms": floor,
        "rows": [],
    }
    for compiled in (False, True):
        decoder = Decoder(model)
        if compiled:
            decoder.compile()
        for batch in MICRO_BATCHES:
            for counted in (False, True):
                each = sweep(decoder, windows, batch, counted) / WINDOWS / LAYERS * 1e3
                row = {"windows": batch, "compiled": compiled, "statistics": counted, "ms": each, "share": floor / each}
                result["rows"].append(row)
        write(options.out, result)
    result["kernels"] = kernels(Decoder(model), windows, 2)
    write(options.out, result)


if __name__ == "__main__":
    main()
