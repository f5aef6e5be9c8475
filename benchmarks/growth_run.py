"""One pruning run of a model of random weights, alone in a process: its time and the most memory that it held."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

import prunecomp
from prunecomp.engine.placement import memory_used
from prunecomp.engine.states import Tier

SHAPES: dict[str, dict[str, int]] = {
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3},
    "twice": {"hidden_size": 816, "intermediate_size": 2176, "num_attention_heads": 12, "num_key_value_heads": 4},
    "four times": {"hidden_size": 1152, "intermediate_size": 3072, "num_attention_heads": 18, "num_key_value_heads": 6},
    "warm-up": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1},
}
"""By the weights of a layer, in those of SmolLM2-135M's."""
VOCABULARY, POSITIONS = 4096, 4096
ORDER = [25, 14, 17, 15, 13, 16, 18, 3, 4, 5]
"""What block influence with the paper's scale takes from SmolLM2-135M's 30 layers (``results/real``)."""


@dataclass(frozen=True)
class Point:
    """A run, and on which curve it lies."""

    series: str
    num_layers: int
    removed: int
    windows: int
    seqlen: int
    shape: str = "135M"
    budget: str = ""
    """In the series ``budget``: empty where memory is what is free."""
    checkpoint: str = ""
    device_memory: int | None = None
    disk: str | None = None


def order_of(num_layers: int) -> list[int]:
    """:data:`ORDER` in a model of so many layers, then what it leaves, from below, where a cut has most run again."""
    scaled = [layer * num_layers // 30 for layer in ORDER]
    return list(dict.fromkeys([*scaled, *range(1, num_layers), 0]))


def build(shape: str, num_layers: int) -> Any:
    """A float32 model of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], num_hidden_layers=num_layers, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def pruned(point: Point, model: Any) -> prunecomp.PruneResult:
    """The run, on random tokens."""
    tokens = torch.randint(0, VOCABULARY, (point.windows, point.seqlen), generator=torch.Generator().manual_seed(1))
    order = order_of(point.num_layers)[: point.removed]
    return prunecomp.prune(
        model, point.removed, tokens, metric="given", given=order, preset="paper", dtype="float32", device="cpu",
        compile="off", device_memory=point.device_memory, disk=point.disk,
    )  # fmt: skip


def measure(point: Point, threads: int) -> dict[str, Any]:
    """One run, in the process that this is called in and that has done nothing before."""
    torch.set_num_threads(threads)
    pruned(Point("", 2, 1, 1, 16), build("warm-up", 2))
    before, _ = memory_used(torch.device("cpu"))
    assert before is not None, "this system does not tell what a process held at most"
    model = point.checkpoint or build(point.shape, point.num_layers)
    started, used = time.perf_counter(), time.process_time()
    result = pruned(point, model)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    peak, _ = memory_used(torch.device("cpu"))
    assert peak is not None
    shape, placement = result.model_source.shape(), result.placement
    return {
        "seconds": seconds, "processor_seconds": used, "peak_bytes": peak - before, "process_bytes": before,
        "planned_bytes": placement.peak_nbytes[Tier.device], "streamed": placement.group_size is not None,
        "kept_boundaries": placement.kept_boundaries, "layer_forwards": result.layer_forwards,
        "flops": result.layer_forwards * shape.flops(point.windows * point.seqlen, point.seqlen),
        "weights": (shape.outer_nbytes + shape.num_layers * shape.layer_nbytes) // shape.itemsize,
    }  # fmt: skip


def save(point: Point, folder: str) -> None:
    """The model of a point, as a checkpoint."""
    disable_progress_bar()
    build(point.shape, point.num_layers).save_pretrained(folder)


def alone(call: Callable[..., Any], *arguments: Any) -> Any:
    """``call`` in a process of its own, forked from one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "prunecomp.report.drawing"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(call, *arguments).result()
