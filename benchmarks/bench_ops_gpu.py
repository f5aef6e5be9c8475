"""The operations on a GPU against what its memory can give.

    python -m benchmarks.bench_ops_gpu --out results.json

Every row names its floor: the fewest bytes (each input read once) over the bandwidth of a copy measured here, or the
operations over the rate of a matrix product measured here. ``share`` is floor over median. Inputs are random and take
turns, so that L2 holds none of them. Leaves with code 2 where no GPU is visible.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_timing import copy_bandwidth, fits, machine, matmul_rate, require_gpu, time_calls
from prunecomp.ops import layer_gram, layer_stats, linear_gram, weight_norms, weight_salience
from prunecomp.ops.backends import TABLE, obstacle

N, S = 8, 2048


class Bench:
    """Rows of results over two measured ceilings."""

    def __init__(self) -> None:
        self.bandwidth, self.rate = copy_bandwidth(), matmul_rate()
        self.rows: list[dict[str, Any]] = []

    def row(
        self,
        op: str,
        case: str,
        how: str,
        calls: Sequence[Callable[[], object]],
        nbytes: int,
        flops: float,
        **more: Any,
    ) -> None:
        timing = time_calls(calls, **more)
        floor = max(nbytes / self.bandwidth, flops / self.rate) * 1e3
        self.rows.append(
            {"op": op, "case": case, "how": how, "bytes": nbytes, "flops": flops, "floor_ms": floor}
            | {"share": floor / timing.median_ms, **vars(timing)}
        )

    def skip(self, op: str, case: str, how: str, reason: str) -> None:
        self.rows.append({"op": op, "case": case, "how": how, "skipped": reason})


def kernels(operation: str) -> dict[str, str | None]:
    """Back ends of a GPU, each with what keeps it from running, if anything does."""
    return {
        name: obstacle(name, "cuda", torch.bfloat16) if operation in TABLE[name] else f"{name} leaves it out"
        for name in ("triton", "cuda")
    }


def states(count: int, d: int) -> list[torch.Tensor]:
    return [torch.randn(N, S, d, device="cuda", dtype=torch.bfloat16) for _ in range(count)]


def separate(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The statistics as one would write them without the operation, in float32."""
    x, y = x.float(), y.float()
    cosine = torch.cosine_similarity(x, y, dim=-1)
    x_norm, y_norm = x.norm(dim=-1), y.norm(dim=-1)
    columns = (cosine, torch.acos(cosine.clamp(-1, 1)), (x * y).sum(-1), x_norm**2, y_norm**2, x_norm, y_norm)
    sums = [column.sum(1) for column in (*columns, y_norm / x_norm)]
    return (*sums, y.abs().sum(1), (x_norm == 0).sum(1), (~torch.isfinite(y_norm)).sum(1))


def bench_layer_stats(bench: Bench) -> None:
    compiled = torch.compile(separate, dynamic=False)
    for d in (4096, 8192):
        pairs = [(states(1, d)[0], states(1, d)[0]) for _ in range(4)]
        case, nbytes = f"T={N * S} d={d} bf16", 2 * pairs[0][0].nbytes

        def calls(run: Callable[..., object], pairs: list = pairs) -> list[Callable[[], object]]:
            return [lambda x=x, y=y: run(x, y) for x, y in pairs]

        for name, why_not in kernels("layer_stats").items():
            for with_input in (False, True):
                how = name + (" with_input" if with_input else "")
                if why_not:
                    bench.skip("layer_stats", case, how, why_not)
                    continue
                run = calls(lambda x, y, i=with_input, b=name: layer_stats(x, y, with_input=i, backend=b))
                bench.row("layer_stats", case, how, run, nbytes, 0)
        reference = calls(lambda x, y: layer_stats(x, y, backend="reference"))
        bench.row("layer_stats", case, "reference", reference, nbytes, 0, repeats=20)
        bench.row("layer_stats", case, "separate", calls(separate), nbytes, 0, repeats=20)
        bench.row("layer_stats", case, "separate, torch.compile", calls(compiled), nbytes, 0)
        release(pairs)


def bench_layer_gram(bench: Bench) -> None:
    d = 4096
    for count in (33, 81):
        nbytes = 2 * count * N * S * d
        case = f"M={count} T={N * S} d={d} bf16"
        if not fits(nbytes):
            bench.skip("layer_gram", case, "all", f"{nbytes / 1e9:.1f} GB do not fit")
            continue
        inputs = states(count, d)  # many times L2: no turns are needed
        for name, why_not in kernels("layer_gram").items():
            if why_not:
                bench.skip("layer_gram", case, name, why_not)
                continue
            run = [lambda b=name, x=inputs: layer_gram(x, backend=b)]
            bench.row("layer_gram", case, name, run, nbytes, count * (count + 1) * N * S * d, repeats=20)
        release(inputs)


def bench_weights(bench: Bench) -> None:
    rows, cols = 4096, 14336
    weights = [torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    acc, case, nbytes = torch.zeros(rows, cols, device="cuda"), f"{rows}x{cols} bf16", weights[0].nbytes
    for operation, total in (("weight_norms", nbytes), ("weight_salience", 2 * nbytes + 2 * acc.nbytes)):
        for name, why_not in ({"reference": None} | kernels(operation)).items():
            if why_not:
                bench.skip(operation, case, name, why_not)
            elif operation == "weight_norms":
                run = [lambda w=w, b=name: weight_norms(w, backend=b) for w in weights]
                bench.row(operation, case, name, run, total, 0)
            else:
                run = [lambda w=w, b=name: weight_salience(w, weights[0], acc, backend=b) for w in weights[1:]]
                bench.row(operation, case, name, run, total, 0)
    release(weights)


def bench_linear_gram(bench: Bench) -> None:
    t, k = N * S, 4096
    a, b = (torch.randn(t, k, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    ata, atb = torch.zeros(k, k, device="cuda"), torch.zeros(k, k, device="cuda")
    case, flops = f"T={t} k=m={k} bf16", t * k * (k + 1) + 2 * t * k * k
    for name, why_not in ({"reference": None} | kernels("linear_gram")).items():
        if why_not:
            bench.skip("linear_gram", case, name, why_not)
            continue
        how = "torch.mm(out_dtype=float32)" if name == "reference" else name
        run = [lambda n=name: linear_gram(a, b, ata, atb, backend=n)]
        bench.row("linear_gram", case, how, run, 2 * a.nbytes + 4 * ata.nbytes, flops, repeats=20)
    release([a, b])


def release(tensors: list) -> None:
    tensors.clear()
    gc.collect()
    torch.cuda.empty_cache()


def table(bench: Bench) -> str:
    lines = [f"copy {bench.bandwidth / 1e9:.0f} GB/s, bf16 product {bench.rate / 1e12:.0f} TFLOP/s"]
    for row in bench.rows:
        head = f"{row['op']:16s} {row['case']:28s} {row['how']:28s}"
        if "skipped" in row:
            lines.append(f"{head} skipped: {row['skipped']}")
            continue
        spread = f"{row['low_ms']:.3f}..{row['high_ms']:.3f}"
        lines.append(f"{head} {row['median_ms']:9.3f} ms ({spread})  floor {row['floor_ms']:.3f}  {row['share']:5.0%}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write machine, ceilings and rows here as JSON")
    arguments = parser.parse_args()
    require_gpu()
    torch.manual_seed(0)
    bench = Bench()
    for measure in (bench_layer_stats, bench_layer_gram, bench_weights, bench_linear_gram):
        measure(bench)
    if arguments.out:
        result = {"machine": machine(), "copy_bytes_per_second": bench.bandwidth, "matmul_flops": bench.rate}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result | {"rows": bench.rows}, indent=1))
    print(table(bench))


if __name__ == "__main__":
    main()
