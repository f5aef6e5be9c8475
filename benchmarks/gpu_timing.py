"""Timing on a GPU: events, warm-up, medians with quantiles, and inputs that take turns, so that L2 holds none."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int


def require_gpu() -> None:
    """Leave with code 2 where there is nothing to measure."""
    if not torch.cuda.is_available():
        print("This benchmark measures a GPU and none is visible to torch; nothing was measured.", file=sys.stderr)
        raise SystemExit(2)


def fits(nbytes: int) -> bool:
    return nbytes * 1.15 + (1 << 30) < torch.cuda.mem_get_info()[0]


QUEUE = 3_000_000
"""Cycles for which the device sleeps while a call is queued: some 1.5 ms, many times what its launches take a host."""


def time_calls(calls: Sequence[Callable[[], object]], repeats: int = 50, warmup: int = 5) -> Timing:
    """``calls`` do the same work on different inputs and are called in turn, each while the device still sleeps: what
    is timed is the work and not how fast a host can ask for it."""
    for i in range(max(warmup, len(calls))):
        calls[i % len(calls)]()
    torch.cuda.synchronize()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for i, (start, stop) in enumerate(events):
        torch.cuda._sleep(QUEUE)
        start.record()
        calls[i % len(calls)]()
        stop.record()
    torch.cuda.synchronize()
    times = torch.tensor([start.elapsed_time(stop) for start, stop in events])
    low, median, high = times.quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
    return Timing(median, low, high, repeats)


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy from device memory to device memory of 2 GiB."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    timing = time_calls([lambda: target.copy_(source)], repeats=20)
    return 2 * source.nbytes / timing.median_ms * 1e3


def matmul_rate() -> float:
    """Operations a second of a bfloat16 matrix product of 8192^3."""
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    timing = time_calls([lambda: a @ b], repeats=20)
    return 2 * 8192**3 / timing.median_ms * 1e3


def machine() -> dict[str, object]:
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = None
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version,
        "python": platform.python_version(),
    }
