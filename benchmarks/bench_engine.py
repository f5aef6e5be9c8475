"""The engine against the flows it replaces and against a bare loop over the layers, on one CPU.

    python -m benchmarks.bench_engine --layers 4 8 --out benchmarks/results
    python -m benchmarks.bench_engine models/SmolLM2-135M-Instruct --calibration wikitext2-valid.txt --layers 5 \
        --samples 128 --seqlen 128 --scaling 2 --confidence 0.999 --repetitions 2

All times are of one run on one machine over the same windows, repetitions interleaved; ratios are of medians. Also the
share of a run that statistics take, by leaving them out of an otherwise equal sweep. ``--scaling 2`` gives the official
flow twice as many sequences to scale by as to score by, as its code has; ours takes both from one pass over those it
scores by.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import prunecomp
from benchmarks.baselines import official, sleb
from prunecomp.data.windows import Windows
from prunecomp.engine import sinks
from prunecomp.engine.placement import available_memory, model_shape, place
from prunecomp.engine.states import StateStore
from prunecomp.engine.sweep import Sweeper
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.ops import describe_backends
from prunecomp.pruning.pruner import Pruner

MODEL = Path(__file__).parent.parent / "examples" / "reference_model"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"median": statistics.median(ordered), "least": ordered[0], "most": ordered[-1], "runs": len(ordered)}


def loops(decoder: Decoder, windows: Windows, repetitions: int) -> dict[str, Any]:
    """One whole pass: a bare loop over the layers, the sweep without sinks, and the pruner's own scoring pass."""
    memory = available_memory(decoder.device)
    shape = model_shape(decoder.model, decoder.family, decoder.dtype)
    placement = place(shape, windows.count, windows.seqlen, memory, decoder.device, resident=True)
    stack = LayerStack.dense(decoder.num_layers)
    states = Sweeper(decoder, windows, placement).state_shape

    def bare() -> None:
        with decoder.evaluating():
            for batch in windows.batches(placement.micro_batch):
                stream, arguments = decoder.enter(batch)
                for layer in range(decoder.num_layers):
                    stream = decoder.call(layer, stream, arguments)

    def sweep() -> None:
        with decoder.evaluating():
            Sweeper(decoder, windows, placement).sweep(stack, 0, StateStore(states, decoder.device, {}))

    def score() -> None:
        Pruner(decoder, windows, placement=placement).score()

    seconds: dict[str, list[float]] = {"bare loop": [], "sweep without statistics": [], "scoring pass": []}
    bare()
    for _ in range(repetitions):
        for name, call in zip(seconds, (bare, sweep, score), strict=True):
            seconds[name].append(timed(call))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    # Paired: each repetition's own ratio, since the machine's speed drifts between repetitions.
    over_bare = [s / b for s, b in zip(seconds["scoring pass"], seconds["bare loop"], strict=True)]
    over_sweep = [1 - w / s for s, w in zip(seconds["scoring pass"], seconds["sweep without statistics"], strict=True)]
    return {
        "seconds": {name: quantiles(values) for name, values in seconds.items()},
        "layer_forwards": decoder.num_layers,
        "milliseconds_per_layer_forward": {name: 1e3 * median / decoder.num_layers for name, median in medians.items()},
        "scoring_pass_over_bare_loop": quantiles(over_bare),
        "share_of_statistics_and_states": quantiles(over_sweep),
    }


def statistics_share(decoder: Decoder, windows: Windows, layers: int) -> dict[str, float]:
    """How much of a whole pruning run is spent inside ``layer_stats``, timed call by call. A CPU call returns when it
    is done, so that its own time is all of it."""
    spent = 0.0
    operation = sinks.layer_stats

    def watched(*args: Any, **options: Any) -> Any:
        nonlocal spent
        started = time.perf_counter()
        result = operation(*args, **options)
        spent += time.perf_counter() - started
        return result

    sinks.layer_stats = watched  # type: ignore[assignment]
    try:
        seconds = timed(lambda: prunecomp.prune(decoder.model, layers, windows.tokens, preset="paper"))
    finally:
        sinks.layer_stats = operation
    return {"removals": layers, "seconds": seconds, "in_statistics": spent, "share": spent / seconds}


def against_baselines(
    decoder: Decoder, windows: Windows, layers: int, scaling: int, confidence: float | None, with_sleb: bool
) -> dict[str, Any]:
    tokens = windows.tokens
    prunecomp.prune(decoder.model, layers, tokens[:2], preset="paper")  # what only a first run pays
    started = time.perf_counter()
    theirs = official.prune(decoder.model, layers, tokens, tokens.repeat(scaling, 1))
    theirs_seconds = time.perf_counter() - started
    started = time.perf_counter()
    ours = prunecomp.prune(decoder.model, layers, tokens, preset="paper")
    ours_seconds = time.perf_counter() - started
    row: dict[str, Any] = {
        "layers": layers,
        "windows": windows.count,
        "seqlen": windows.seqlen,
        "ours": {"seconds": ours_seconds, "layer_forwards": ours.layer_forwards, "removed": ours.removed},
        "official flow": {
            "seconds": theirs_seconds, "layer_forwards": theirs.layer_forwards, "removed": theirs.removed,
            "largest_difference_of_scales": max(abs(a / b - 1) for a, b in zip(ours.scales, theirs.scales, strict=True))
            if ours.removed == theirs.removed else None,
        },
        "ratio": theirs_seconds / ours_seconds,
    }  # fmt: skip
    if confidence is not None:
        started = time.perf_counter()
        early = prunecomp.prune(decoder.model, layers, tokens, preset="paper", confidence=confidence)
        seconds = time.perf_counter() - started
        row["ours, ended early"] = {
            "confidence": confidence, "seconds": seconds, "layer_forwards": early.layer_forwards,
            "removed": early.removed, "ratio": theirs_seconds / seconds,
        }  # fmt: skip
    if with_sleb:
        few = tokens[: max(1, windows.count // 16)]
        started = time.perf_counter()
        other = sleb.prune(decoder.model, layers, few)
        row["sleb flow"] = {
            "seconds": time.perf_counter() - started, "sequences": len(few), "layer_forwards": other.layer_forwards,
            "removed": other.removed,
        }  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=MODEL, help="by default the bundled model")
    parser.add_argument("--calibration", type=Path, default=MODEL / "calibration.txt")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seqlen", type=int, help="tokens of a window")
    parser.add_argument("--scaling", type=int, default=1, help="times as many sequences for the official flow's scales")
    parser.add_argument("--confidence", type=float, help="once more, with rounds that end early")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()

    scored = prunecomp.prune(
        options.model, 1, options.calibration, samples=options.samples, seqlen=options.seqlen, dtype=options.dtype,
        preset="paper",
    )  # for its windows and its loaded model  # fmt: skip
    decoder, windows = scored.model_source.load(), scored.calibration
    result: dict[str, Any] = {
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": options.dtype,
        "model": options.model.name,
        "backends": describe_backends()["active"],
        "loops": loops(decoder, windows, options.repetitions),
        "statistics": [
            statistics_share(decoder, windows, min(options.layers)) for _ in range(min(3, options.repetitions))
        ],
        "baselines": [
            against_baselines(
                decoder,
                windows,
                layers,
                options.scaling,
                options.confidence,
                with_sleb=options.model == MODEL and layers == min(options.layers),
            )
            for layers in options.layers
        ],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "_" for c in result["machine"]).strip("_").lower()
    which = "" if options.model == MODEL else f"{options.model.name}_"
    path = options.out / f"engine_cpu_{name}_{which}{options.dtype}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))
    print(f"wrote {path}")


def markdown(result: dict[str, Any]) -> str:
    passes = result["loops"]
    lines = ["| one pass over the model | ms a layer-forward | over the bare loop |", "| --- | ---: | ---: |"]
    base = passes["milliseconds_per_layer_forward"]["bare loop"]
    for name, value in passes["milliseconds_per_layer_forward"].items():
        lines.append(f"| {name} | {value:.1f} | {value / base:.3f} |")
    lines += ["", "| removals | ours, s | official flow, s | ratio | layer-forwards, ours | theirs |",
              "| ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for row in result["baselines"]:
        ours, theirs = row["ours"], row["official flow"]
        lines.append(
            f"| {row['layers']} | {ours['seconds']:.1f} | {theirs['seconds']:.1f} | {row['ratio']:.1f} "
            f"| {ours['layer_forwards']} | {theirs['layer_forwards']:.0f} |"
        )
        if early := row.get("ours, ended early"):
            lines.append(
                f"| {row['layers']}, ended early at {early['confidence']:g} | {early['seconds']:.1f} "
                f"| {theirs['seconds']:.1f} | {early['ratio']:.1f} | {early['layer_forwards']} "
                f"| {theirs['layer_forwards']:.0f} |"
            )
    shares = ", ".join(f"{100 * row['share']:.1f} %" for row in result["statistics"])
    lines += ["", f"share of a pruning run inside layer_stats, run by run: {shares}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
