"""Times alternatives to the static launch table on a GPU and prints the best of each against the entry in the table.

    python -m benchmarks.tune_launch

Nothing is changed: an entry is edited by hand in ``kernels/launch.py`` when another wins by more than the spread.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from prunecomp.kernels.launch import GramLaunch, StatsLaunch

from benchmarks.gpu_timing import Timing, fits, require_gpu, time_calls
from prunecomp.kernels import launch
from prunecomp.ops import layer_gram, layer_stats

N, S = 8, 2048
STATS = [
    StatsLaunch(*values)
    for values in itertools.product((64, 128, 256), (64, 128), (512, 1024, 2048), (4, 8), (1, 2, 3, 4))
    if values[0] * values[1] <= 16384
]
GRAM = [
    GramLaunch(64, *values) for values in itertools.product((16, 32, 64), (64, 128), (4, 8), (3, 4, 5, 6), (128, 255))
]


def tune(name: str, entry: Any, plans: Iterable[Any], calls: list[Callable[[], object]]) -> None:
    """Time ``calls`` with each plan in place of the entry ``name`` of the table."""
    chosen, results = getattr(launch, name), []
    for plan in [entry, *plans]:
        setattr(launch, name, lambda *_, plan=plan: plan)
        try:
            results.append((time_calls(calls, repeats=20), plan))
        except Exception as error:  # a plan that does not fit the GPU is no candidate
            print(f"  left out {plan}: {type(error).__name__}")
        finally:
            setattr(launch, name, chosen)
    _print("table", *results[0])
    for timing, plan in sorted(results, key=lambda result: result[0].median_ms)[:5]:
        _print("best ", timing, plan)


def _print(label: str, timing: Timing, plan: object) -> None:
    print(f"  {label} {timing.median_ms:8.3f} ms ({timing.low_ms:.3f}..{timing.high_ms:.3f})  {plan}")


def main() -> None:
    require_gpu()
    torch.manual_seed(0)
    for d in (4096, 8192):
        pairs = [torch.randn(2, N, S, d, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
        print(f"layer_stats T={N * S} d={d} bfloat16")
        calls = [lambda pair=pair: layer_stats(pair[0], pair[1], backend="triton") for pair in pairs]
        tune("layer_stats", launch.layer_stats(d, 2), STATS, calls)
        del pairs, calls
    for count in (33, 81):
        if not fits(2 * count * N * S * 4096):
            print(f"layer_gram M={count}: does not fit")
            continue
        states = [torch.randn(N, S, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
        print(f"layer_gram M={count} T={N * S} d=4096 bfloat16")
        run = [lambda states=states: layer_gram(states, backend="triton")]
        tune("layer_gram", launch.layer_gram(count, 4096, 2), GRAM, run)
        del states, run


if __name__ == "__main__":
    main()
