"""The engine on one GPU: an 8B-shaped model pruned by five layers, and a 70B-shaped stack streamed through 24 GB.

    python -m benchmarks.bench_engine_gpu --out results.json

Weights are random and made on the device: timing does not depend on what they hold, only on their not being zeros. The
baseline runs one round on few sequences and is scaled by the number of sequences and of rounds; the output says so.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

import prunecomp
from benchmarks.baselines import official
from benchmarks.gpu_timing import machine, matmul_rate, require_gpu
from prunecomp.data.windows import Windows
from prunecomp.engine.parallel import Workers
from prunecomp.engine.placement import Memory, Placement, model_shape, place
from prunecomp.engine.sinks import LayerSink
from prunecomp.engine.states import StateStore, Tier
from prunecomp.engine.sweep import Sweeper
from prunecomp.model.decoder import Decoder
from prunecomp.model.loader import build_skeleton
from prunecomp.model.stack import LayerStack
from prunecomp.model.streaming import StreamedWeights

DEVICE = torch.device("cuda")
LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA_70B = {**LLAMA_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64}
ORDER = [25, 26, 24, 27, 23]
"""Where the layers lie that block influence takes from a trained model of this shape."""
STREAM_LIMIT = 24 * 10**9
BASELINE_SEQUENCES = 8
PAPER_SEQUENCES = (128, 256)
"""The official code scores on the first of 256 sequences and scales on all."""


def random_parameter(shape: torch.Size, device: torch.device) -> nn.Parameter:
    std = 0.02 if len(shape) > 1 else 0.1
    values = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16).mul_(std)
    return nn.Parameter((values + (len(shape) == 1)).to(device), requires_grad=False)


def fill(model: Any, device: torch.device, only: Callable[[str], bool] = lambda name: True) -> None:
    """Random weights for parameters of a skeleton, and its buffers on the device."""
    for prefix, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and only(f"{prefix}.{leaf}"):
                module._parameters[leaf] = random_parameter(parameter.shape, device)
        for leaf, buffer in module.named_buffers(recurse=False):
            module._buffers[leaf] = buffer.to(DEVICE)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    torch.cuda.synchronize()
    started = time.perf_counter()
    value = call()
    torch.cuda.synchronize()
    return time.perf_counter() - started, value


def prune_8b(samples: int, seqlen: int, layers: int, rate: float) -> dict[str, Any]:
    model: Any = build_skeleton(AutoConfig.for_model("llama", **LLAMA_8B), torch.bfloat16)
    fill(model, DEVICE)
    shape = model_shape(model, Decoder(model).family, torch.bfloat16)
    tokens = torch.randint(0, LLAMA_8B["vocab_size"], (samples, seqlen))
    prunecomp.prune(model, 1, tokens[:4], preset="paper")  # warm-up: cuBLAS handles, kernels
    weights = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    # The scores of random weights fall with depth, so that the top layers go and rounds have next to nothing to run.
    # Both are timed: what they choose, and an order as models have it, through the same code.
    chosen, free = timed(lambda: prunecomp.prune(model, layers, tokens, preset="paper"))
    forced = partial(prunecomp.prune, model, layers, tokens, metric="given", given=ORDER[:layers], preset="paper")
    seconds, result = timed(forced)
    peak = torch.cuda.max_memory_allocated() - weights
    # Twice, since the first one compiles; the caches of an earlier process are on disk, and left out of it.
    compiled = [timed(partial(forced, compile="on"))[0] for _ in range(2)]
    flops = result.layer_forwards * shape.flops(samples * seqlen, seqlen)

    few = tokens[:BASELINE_SEQUENCES]
    official.block_influence(model, few[:1])
    one_pass, _ = timed(lambda: official.block_influence(model, few))
    per_sequence_and_layer = one_pass / BASELINE_SEQUENCES / LLAMA_8B["num_hidden_layers"]
    depths = sum(LLAMA_8B["num_hidden_layers"] - done for done in range(layers))
    baseline = per_sequence_and_layer * depths * sum(PAPER_SEQUENCES)
    return {
        "windows": samples, "seqlen": seqlen, "removals": layers, "seconds": seconds, "removed": result.removed,
        "layer_forwards": result.layer_forwards, "unforced": {
            "seconds": chosen, "removed": free.removed, "layer_forwards": free.layer_forwards,
        }, "compiled_seconds": compiled[1], "compiling_seconds": compiled[0] - compiled[1],
        "tflops_per_second": flops / seconds / 1e12,
        "share_of_matmul_rate": flops / seconds / rate,
        "baseline_seconds_scaled": baseline,
        "baseline_note": f"one scoring pass over {BASELINE_SEQUENCES} sequences, scaled to {sum(PAPER_SEQUENCES)} "
        f"sequences a round and {layers} rounds",
        "baseline_over_ours": baseline / seconds,
        "peak_bytes_beside_weights": peak, "planned_bytes_beside_weights": result.placement.peak_nbytes[Tier.device],
    }  # fmt: skip


class HostTensors:
    """Weights of the layers in host memory, under their names."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def location(self, name: str) -> str:
        return "memory"


def one_pass(decoder: Decoder, windows: Windows, placement: Placement, *, counted: bool = True) -> float:
    """Seconds of a sweep from the embedding up, with statistics unless they are not ``counted``."""
    sweeper = Sweeper(decoder, windows, placement)
    states = StateStore(sweeper.state_shape, DEVICE, {}, carry=placement.carry)
    sinks = [LayerSink(windows, Workers(windows.count))] if counted else []
    stack = LayerStack.dense(decoder.num_layers)
    with decoder.evaluating():
        return timed(lambda: sweeper.sweep(stack, 0, states, sinks))[0]


def stream_70b(samples: int, seqlen: int, layers: int) -> dict[str, Any]:
    config = AutoConfig.for_model("llama", **{**LLAMA_70B, "num_hidden_layers": layers})
    model: Any = build_skeleton(config, torch.bfloat16)
    fill(model, DEVICE, only=lambda name: "model.layers." not in name)
    stack = list(model.model.layers)
    host = {
        f"model.layers.{number}.{name}": random_parameter(parameter.shape, torch.device("cpu")).data
        for number, layer in enumerate(stack)
        for name, parameter in layer.named_parameters()
    }
    windows = Windows(torch.randint(0, LLAMA_70B["vocab_size"], (samples, seqlen)), "random")
    shape = model_shape(model, Decoder(model).family, torch.bfloat16)
    placement = place(shape, samples, seqlen, Memory(STREAM_LIMIT, host=64 * 10**9), DEVICE)
    if placement.group_size is None:
        raise SystemExit(f"{layers} layers fit into {STREAM_LIMIT:,} bytes: nothing would be streamed")
    prefixes = [f"model.layers.{number}" for number in range(layers)]
    source = HostTensors(host)
    streamed = StreamedWeights(stack, prefixes, source, torch.bfloat16, DEVICE, placement.group_size)
    decoder = Decoder(model, streamed)
    one_pass(decoder, windows.take(slice(0, 2)), placement)  # warm-up, and the check for weights that are not finite
    torch.cuda.reset_peak_memory_stats()
    streaming = one_pass(decoder, windows, placement)
    peak = torch.cuda.max_memory_allocated()
    for prefix, layer in zip(prefixes, stack, strict=True):
        for path, module in layer.named_modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    name = ".".join(part for part in (prefix, path, leaf) if part)
                    module._parameters[leaf] = nn.Parameter(host[name].to(DEVICE), requires_grad=False)
    at_home = Decoder(model)
    everything = Placement(placement.micro_batch, None, {}, Tier.device, {})
    one_pass(at_home, windows.take(slice(0, 2)), everything)
    resident = one_pass(at_home, windows, everything)
    return {
        "layers": layers, "windows": samples, "seqlen": seqlen, "limit_bytes": STREAM_LIMIT,
        "carry": placement.carry.value, "streamed_seconds": streaming, "resident_seconds": resident,
        "streamed_share_of_resident_rate": resident / streaming,
        "peak_bytes": peak, "planned_bytes": placement.peak_nbytes[Tier.device],
    }  # fmt: skip


def write(out: Path | None, result: dict[str, Any]) -> None:
    """What there is so far."""
    text = json.dumps(result, indent=1)
    print(text, flush=True)
    if out is not None:
        out.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument(
        "--stack", type=int, default=16, help="layers of the 70B shape: 1.7 GB of host memory each, 0: none"
    )
    options = parser.parse_args()
    require_gpu()
    torch.manual_seed(0)
    rate = matmul_rate()
    result: dict[str, Any] = {"machine": machine(), "matmul_tflops_per_second": rate / 1e12}
    result["llama_8b"] = prune_8b(options.samples, options.seqlen, options.layers, rate)
    write(options.out, result)
    if options.stack == 0:
        return
    torch.cuda.empty_cache()
    result["llama_70b_streamed"] = stream_70b(options.samples, options.seqlen, options.stack)
    write(options.out, result)


if __name__ == "__main__":
    main()
