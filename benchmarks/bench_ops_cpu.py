"""The CPU operations: C++ against the reference, three separate float32 expressions, and the official matrix product.

``pytest benchmarks/bench_ops_cpu.py --benchmark-enable`` times each by itself, in groups. ``python -m
benchmarks.bench_ops_cpu`` times them interleaved, so that a noisy machine is unfair to none, with the bandwidth of a
copy (bytes read + bytes written over time) and the rate of a matrix product in the same rounds, and writes quantiles.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from prunecomp.ops import native, reference

N, S = 2, 2048
HIDDEN_SIZES = (1024, 4096)
DTYPES = (torch.float32, torch.bfloat16)
GRAM_STATES, GRAM_TOKENS = 33, 256
COPY_NBYTES = 1 << 28
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)

Call = Callable[[], Any]


def separate_expressions(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What a script would write: each expression converts to float32 and reads both states again."""
    cosine = torch.cosine_similarity(x.float(), y.float(), dim=-1)
    norms = torch.linalg.vector_norm(x.float(), dim=-1), torch.linalg.vector_norm(y.float(), dim=-1)
    means = x.float().abs().mean(dim=1), y.float().abs().mean(dim=1)
    return cosine, *norms, *means


def official_product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The cosine as the official code takes it: all S x S products of a sequence, of which the diagonal is used."""
    x, y = x.float(), y.float()
    x = x / x.norm(dim=-1, keepdim=True)
    y = y / y.norm(dim=-1, keepdim=True)
    return torch.diagonal(x @ y.mT, dim1=-2, dim2=-1)


def states(count: int, shape: tuple[int, int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def layer_stats_calls(d: int, dtype: torch.dtype) -> dict[str, Call]:
    x, y = states(2, (N, S, d), dtype)
    return {
        "native": lambda: native.layer_stats(x, y, None, True),
        "native, |y| only": lambda: native.layer_stats(x, y, None, False),
        "reference": lambda: reference.layer_stats(x, y, None, True),
        "separate": lambda: separate_expressions(x, y),
        "official": lambda: official_product(x, y),
    }


def layer_gram_calls(d: int, dtype: torch.dtype) -> dict[str, Call]:
    held = states(GRAM_STATES, (1, GRAM_TOKENS, d), dtype)
    return {
        "native": lambda: native.layer_gram(held, None),
        "reference": lambda: reference.layer_gram(held, None),
    }


def weight_calls(dtype: torch.dtype) -> dict[str, Call]:
    w, g = states(2, (1, 4096, 4096), dtype)
    acc = torch.zeros(4096, 4096)
    return {
        "native norms": lambda: native.weight_norms(w[0]),
        "reference norms": lambda: reference.weight_norms(w[0]),
        "native salience": lambda: native.weight_salience(w[0], g[0], acc),
        "reference salience": lambda: reference.weight_salience(w[0], g[0], acc),
    }


def groups() -> dict[str, Callable[[], dict[str, Call]]]:
    made: dict[str, Callable[[], dict[str, Call]]] = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for d in HIDDEN_SIZES:
            made[f"layer_stats {name} d={d}"] = lambda d=d, dtype=dtype: layer_stats_calls(d, dtype)
            made[f"layer_gram {name} d={d}"] = lambda d=d, dtype=dtype: layer_gram_calls(d, dtype)
        made[f"weights {name}"] = lambda dtype=dtype: weight_calls(dtype)
    return made


GROUPS = groups()


def names_of(group: str) -> list[str]:
    if group.startswith("layer_stats"):
        return ["native", "native, |y| only", "reference", "separate", "official"]
    if group.startswith("layer_gram"):
        return ["native", "reference"]
    return ["native norms", "reference norms", "native salience", "reference salience"]


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in GROUPS for name in names_of(group)])
def test_operation(group: str, name: str, benchmark: Any) -> None:
    benchmark.group = group
    benchmark.extra_info.update(machine=machine(), threads=torch.get_num_threads(), variant=native.variant())
    benchmark(GROUPS[group]()[name])


def test_copy(benchmark: Any) -> None:
    benchmark.group = "copy"
    benchmark.extra_info["nbytes"] = 2 * COPY_NBYTES
    source, target = torch.ones(COPY_NBYTES // 4), torch.zeros(COPY_NBYTES // 4)
    benchmark(target.copy_, source)


def machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*: (.*)", text)
    family = "-".join(re.findall(r"(?:cpu family|model)\t+: (\d+)", text)[:2])
    return f"{found.group(1) if found else 'unknown'} family {family}".strip()


def quantiles(seconds: list[float]) -> list[float]:
    return torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()


class Quiet:
    """Tells rounds that had the machine to themselves: a matrix product before and after ran near its best so far."""

    def __init__(self, product: Call) -> None:
        self.product = product
        self.best = min(seconds_of(product) for _ in range(50))

    def now(self) -> bool:
        seconds = min(seconds_of(self.product) for _ in range(2))
        self.best = min(self.best, seconds)
        return seconds < 1.3 * self.best


def seconds_of(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(calls: dict[str, Call], rounds: int, quiet: Quiet, limit: float) -> tuple[dict[str, list[float]], bool]:
    """Seconds of each call in every quiet round, in turn; whatever there is, and False, if too few come in time."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    others: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    while len(taken["copy"]) < rounds and (time.perf_counter() - start < limit or not others["copy"]):
        before = quiet.now()
        seconds = {name: seconds_of(call) for name, call in calls.items()}
        kept = taken if before and quiet.now() else others
        for name, value in seconds.items():
            kept[name].append(value)
    enough = len(taken["copy"]) >= 3
    return (taken if enough else {name: taken[name] + others[name] for name in calls}), enough


def nbytes_of(group: str) -> int:
    """What one read of every input comes to."""
    size = 4 if "float32" in group else 2
    d = int(group.rpartition("=")[2]) if "=" in group else 0
    if group.startswith("layer_stats"):
        return 2 * N * S * d * size
    return GRAM_STATES * GRAM_TOKENS * d * size if d else 4096 * 4096 * size


def flops_of(group: str) -> int:
    d = int(group.rpartition("=")[2])
    return GRAM_TOKENS * d * GRAM_STATES * (GRAM_STATES + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--limit", type=float, default=60.0, help="seconds to wait for quiet rounds of a group")
    parser.add_argument("--only", default="", help="groups whose name starts so")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    source, target = torch.ones(COPY_NBYTES // 4), torch.zeros(COPY_NBYTES // 4)
    factor = torch.ones(1024, 1024)
    floors: dict[str, Call] = {"copy": lambda: target.copy_(source), "matmul": lambda: factor @ factor}
    quiet = Quiet(floors["matmul"])
    table = Table("group", "call", "median ms", "GB/s", "of copy", "GFLOP/s", "native is faster by")
    results: dict[str, Any] = {}
    for group, calls in GROUPS.items():
        if not group.startswith(options.only):
            continue
        taken, alone = measure({**floors, **calls()}, options.rounds, quiet, options.limit)
        spread = {name: quantiles(seconds) for name, seconds in taken.items()}
        middle = {name: values[QUANTILES.index(0.5)] for name, values in spread.items()}
        bandwidth = 2 * COPY_NBYTES / middle["copy"]
        # The median of the ratios of neighbours in time, not the ratio of medians: noise hits both.
        results[group] = {
            "rounds": len(taken["copy"]),
            "machine_was_quiet": alone,
            "seconds": spread,
            "nbytes": nbytes_of(group),
            "copy_bytes_per_second": bandwidth,
        }
        results[group]["matmul_flop_per_second"] = 2 * 1024**3 / middle["matmul"]
        for name in names_of(group):
            nbytes = nbytes_of(group)
            if "salience" in name:  # w and g read, acc read and written
                nbytes = 2 * nbytes + 2 * 4 * 4096 * 4096
            rate = nbytes / middle[name]
            base = name.replace("reference", "native") if group.startswith("weights") else "native"
            pairs = zip(taken[name], taken[base], strict=True)
            ratio = float(torch.tensor([slow / fast for slow, fast in pairs]).median())
            copies = zip(taken["copy"], taken[name], strict=True)
            share = float(torch.tensor([nbytes / own * copy / (2 * COPY_NBYTES) for copy, own in copies]).median())
            results[group].setdefault("times_native", {})[name] = ratio
            results[group].setdefault("share_of_copy", {})[name] = share
            flops = f"{flops_of(group) / middle[name] / 1e9:.0f}" if group.startswith("layer_gram") else ""
            cells = [f"{middle[name] * 1e3:.2f}", f"{rate / 1e9:.1f}", f"{share:.2f}", flops, f"{ratio:.2f}"]
            table.add_row(group, name, *cells)
        if not alone:
            table.add_row(group, "(the machine was busy: no figures)")
        table.add_row(group, "copy", f"{middle['copy'] * 1e3:.2f}", f"{bandwidth / 1e9:.1f}", "1.00", "", "")
        rate = results[group]["matmul_flop_per_second"]
        table.add_row(group, "1024^3 matmul", f"{middle['matmul'] * 1e3:.2f}", "", "", f"{rate / 1e9:.0f}", "")
        table.add_section()

    report = {
        "machine": machine(),
        "threads": options.threads,
        "variant": native.variant(),
        "torch": torch.__version__,
        "rounds": options.rounds,
        "load_average": os.getloadavg()[0],  # of a machine with other work, the upper quantiles say little
        "nice": os.nice(0),
        "tokens": N * S,
        "quantiles": QUANTILES,
        "groups": results,
    }
    name = re.sub(r"[^a-z0-9]+", "-", machine().lower()).strip("-")
    path = Path(__file__).parent / "results" / f"ops_cpu_{name}_{options.threads}threads.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    console = Console(width=130)
    console.print(f"{report['machine']}, {options.threads} threads, {report['variant']}, torch {torch.__version__}")
    console.print(table)
    console.print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
