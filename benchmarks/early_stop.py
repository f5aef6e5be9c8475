"""Ending rounds early on a real model: how many sequences each round needs, and what that does to the outcome.

    OMP_NUM_THREADS=2 python -m benchmarks.early_stop models/SmolLM2-135M-Instruct [--draws 200] [--checks 1]

One full run keeps the statistics of each sequence; then the sequences come in so many random orders, and the package's
own rule (:func:`prunecomp.metrics.stopping.separated`) says after each shard of an order whether the round ends. That
is exact in the first round. Later ones take the statistics of the model with the same layers gone and the scales of all
sequences, where a run that ends early goes on with scales of the sequences it saw: ``--checks`` runs the engine itself
with so many of the orders, for each confidence, and says whether rounds, choices and scales are those. Where a choice
leads to layers that the full run did not remove, the model is scored again without them.

Writes ``early_stop.json`` and ``early_stop.md``. Minutes are given for SmolLM2-135M on two cores that make 100
GFLOP/s: some 4 for the statistics, 4 for the perplexities, 4 for the checks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench_engine import processor
from prunecomp.data.windows import Windows
from prunecomp.engine.placement import available_memory, place
from prunecomp.evaluation.perplexity import perplexity
from prunecomp.io.escape import markdown_table
from prunecomp.io.plain import json_text
from prunecomp.metrics.stopping import LOOKS, separated
from prunecomp.model.decoder import Decoder
from prunecomp.model.source import open_source
from prunecomp.model.stack import LayerStack
from prunecomp.pruning.inputs import calibration_windows, evaluation_windows
from prunecomp.pruning.journal import write_whole
from prunecomp.pruning.pruner import Pruner
from prunecomp.pruning.rounds import run_rounds

CONFIDENCES = (0.9, 0.99, 0.999)
HELD_OUT = Path(__file__).parent.parent / "examples" / "texts" / "verse.txt"

Look = Callable[[torch.Tensor], int]
"""From the scores of all N sequences, in the order in which they come, [N, C], to how many of them a round takes."""


def needed(sums: torch.Tensor, confidence: float) -> int:
    """How many of the sequences, whose scores are [N, C], a round takes, which looks after each shard."""
    shards = min(LOOKS, len(sums))
    ends = (len(sums) * shard // shards for shard in range(1, shards + 1))
    return next(n for n in ends if separated(sums[:n], len(sums), confidence))


@dataclass(frozen=True)
class Scored:
    """What is known of the N sequences in a model: C survivors, each one's score and the scale it would leave, by
    sequence, [N, C] float64."""

    layers: list[int]
    sums: torch.Tensor
    ratios: torch.Tensor


class Models:
    """The models on the way, by the layers that are gone, in their order; scored when first asked for."""

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner
        self.known: dict[tuple[int, ...], Scored] = {}

    def without(self, gone: tuple[int, ...]) -> Scored:
        if gone not in self.known:
            pruner = self._pruner
            while tuple(pruner.removed) != gone[: len(pruner.removed)]:
                pruner.undo()
            for layer in gone[len(pruner.removed) :]:
                pruner.remove(layer)
            pruner.score()
            scores = pruner.sequence_scores
            assert scores is not None
            ratios = [pruner.statistics.of(layer).ratio for layer in scores.layers]
            self.known[gone] = Scored(scores.layers, torch.from_numpy(scores.sums), torch.stack(ratios, dim=1))
        return self.known[gone]


@dataclass(frozen=True)
class Course:
    """A run: what went, the scales, and the sequences of each round."""

    removed: tuple[int, ...]
    scales: tuple[float, ...]
    sequences: tuple[int, ...]


def course(models: Models, order: torch.Tensor, layers: int, look: Look) -> Course:
    """The run on the sequences in ``order``."""
    removed: list[int] = []
    scales, sequences = [], []
    for _ in range(layers):
        scored = models.without(tuple(removed))
        sums = scored.sums[order]
        n = look(sums)
        column = int(sums[:n].sum(dim=0).argmin())
        removed.append(scored.layers[column])
        scales.append(float(scored.ratios[order[:n], column].mean()))
        sequences.append(n)
    return Course(tuple(removed), tuple(scales), tuple(sequences))


def checked(decoder: Decoder, windows: Windows, placement: Any, confidence: float, simulated: Course) -> dict[str, Any]:
    """What the engine does with windows in the order that ``simulated`` is of."""
    pruner = Pruner(decoder, windows, placement=placement, confidence=confidence)
    rounds = run_rounds(pruner, len(simulated.removed), list(range(decoder.num_layers)), one_shot=False)
    real = Course(*(tuple(getattr(one, name) for one in rounds) for name in ("layer", "scale", "sequences")))
    same = real.removed == simulated.removed
    return {
        "confidence": confidence, "removed": real.removed, "sequences": real.sequences, "scales": real.scales,
        "layer_forwards": pruner.layer_forwards, "same_choices": same,
        "same_sequences": real.sequences == simulated.sequences,
        "largest_difference_of_scales": largest_difference(real, simulated) if same else None,
    }  # fmt: skip


def largest_difference(one: Course, other: Course) -> float:
    """Of the scales of two runs that remove the same, relative."""
    return max(abs(a / b - 1) for a, b in zip(one.scales, other.scales, strict=True))


def summary(courses: Sequence[Course], full: Course) -> dict[str, Any]:
    """What a confidence does, over all orders."""
    same = [one for one in courses if one.removed == full.removed]
    apart = sorted(largest_difference(one, full) for one in same)
    rounds = list(zip(*(one.sequences for one in courses), strict=True))
    return {
        "sequences": [
            {"mean": statistics.mean(each), "median": statistics.median(each), "least": min(each), "most": max(each),
             "counts": dict(sorted(Counter(each).items()))} for each in rounds
        ],
        "mean_share": statistics.mean(n for each in rounds for n in each) / max(full.sequences),
        "sets_differ": sum(set(one.removed) != set(full.removed) for one in courses),
        "orders_differ": sum(one.removed != full.removed for one in courses),
        "scales_differ": dict(zip(("median", "most"), (statistics.median(apart), apart[-1]), strict=True))
        if apart else None,
    }  # fmt: skip


def outcomes(courses: dict[str, list[Course]], full: Course) -> list[tuple[str, Course]]:
    """The runs whose models are worth a look: the full one; at each confidence that with the same layers whose scales
    are farthest off; and one for each set that differs."""
    found = [("every sequence", full)]
    for confidence, each in courses.items():
        same = [one for one in each if one.removed == full.removed]
        if same:
            farthest = max(same, key=lambda one: largest_difference(one, full))
            found.append((f"{confidence}, scales farthest off", farthest))
        others = {frozenset(one.removed): one for one in reversed(each) if set(one.removed) != set(full.removed)}
        counts = Counter(frozenset(one.removed) for one in each)
        found += [(f"{confidence}, {counts[gone]} of {len(each)}", one) for gone, one in others.items()]
    return found


def stack_of(num_layers: int, one: Course) -> LayerStack:
    stack = LayerStack.dense(num_layers)
    for layer, scale in zip(one.removed, one.scales, strict=True):
        stack = stack.remove(layer, scale)
    return stack


def markdown(result: dict[str, Any]) -> str:
    full, settings = result["full"], result["settings"]
    lines = [
        f"{settings['model']}, {settings['windows']} windows of {settings['seqlen']} tokens in {settings['draws']} "
        f"random orders. Every sequence: layers {' '.join(map(str, full['removed']))} go. Sequences that each round "
        "takes: the mean, the least and the most over the orders.", "",
        *markdown_table(
            ["confidence", *(f"round {n}" for n in range(1, settings["layers"] + 1)), "all rounds", "another set",
             "another order", "scales off by: median", "most"],
            [
                [confidence, *(f"{one['mean']:.0f} ({one['least']} to {one['most']})" for one in each["sequences"]),
                 f"{each['mean_share']:.0%}", str(each["sets_differ"]), str(each["orders_differ"]),
                 *(f"{value:.2%}" for value in (each["scales_differ"] or {}).values())]
                for confidence, each in result["confidences"].items()
            ],
        ), "",
        *markdown_table(
            ["model", "layers", f"perplexity on {settings['held_out']}"],
            [
                [one["name"], " ".join(map(str, one["removed"])), f"{one['perplexity']:.3f}"]
                for one in result["outcomes"]
            ],
        ),
    ]  # fmt: skip
    for one in result["checks"]:
        off = one["largest_difference_of_scales"]
        lines += ["", f"The engine at {one['confidence']}: sequences {' '.join(map(str, one['sequences']))}, "
                  + ("those" if one["same_sequences"] else "not those") + " of the simulation; "
                  + ("the same layers" if one["same_choices"] else "other layers")
                  + ("." if off is None else f", scales within {off:.1e} of its.")]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of the windows and of the orders")
    parser.add_argument("--draws", type=int, default=200, help="random orders of the sequences")
    parser.add_argument("--checks", type=int, default=1, help="orders that the engine itself runs, at each confidence")
    parser.add_argument("--calibration", help="a text; by default the bundled mixture")
    parser.add_argument("--eval", type=Path, default=HELD_OUT, help="a text to judge by")
    parser.add_argument("--evaluated", type=int, default=32, help="windows of it")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "real")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    measured(options)


def measured(options: argparse.Namespace) -> None:
    started = time.perf_counter()

    def write(result: dict[str, Any]) -> None:
        result["seconds"] = time.perf_counter() - started
        write_whole(options.out / "early_stop.json", f"{json_text(result)}\n".encode())

    source = open_source(options.model, dtype="float32", device="cpu", tokenizer=None, allow_pickle=False)
    windows = calibration_windows(source, options.calibration, options.samples, options.seqlen, options.seed)
    held_out = evaluation_windows(source, options.eval, options.seqlen).take(slice(0, options.evaluated))
    memory = available_memory(source.device)
    placement = place(source.shape(), windows.count, windows.seqlen, memory, source.device)
    pruner = Pruner(source.load(), windows, placement=placement)
    decoder, models = pruner.decoder, Models(pruner)
    random = np.random.default_rng(options.seed)
    orders = [torch.from_numpy(random.permutation(windows.count)) for _ in range(options.draws)]
    full = course(models, torch.arange(windows.count), options.layers, len)
    print(f"every sequence: {full.removed}, {time.perf_counter() - started:.0f} s", flush=True)
    courses: dict[str, list[Course]] = {}
    result: dict[str, Any] = {
        "settings": {
            "model": options.model.name, "machine": processor(), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "dtype": "float32", "layers": options.layers, "windows": windows.count,
            "seqlen": windows.seqlen, "calibration_digest": windows.digest, "seed": options.seed,
            "draws": options.draws, "held_out": options.eval.name, "evaluated": held_out.count,
        },
        "full": {"removed": full.removed, "scales": full.scales}, "confidences": {}, "outcomes": [], "checks": [],
    }  # fmt: skip
    for confidence in sorted(CONFIDENCES, reverse=True):
        look = partial(needed, confidence=confidence)
        courses[str(confidence)] = [course(models, order, options.layers, look) for order in orders]
        result["confidences"][str(confidence)] = summary(courses[str(confidence)], full)
        result["models_scored"] = len(models.known)
        write(result)
        print(f"{confidence}: {len(models.known)} models, {time.perf_counter() - started:.0f} s", flush=True)
    pruner.release()
    seen: dict[Course, float] = {}
    dense = ("dense", Course((), (), ()))
    for name, one in [dense, *outcomes(courses, full)]:
        if one not in seen:
            seen[one] = perplexity(decoder, stack_of(decoder.num_layers, one), held_out, placement)
        result["outcomes"].append({"name": name, "removed": one.removed, "scales": one.scales, "perplexity": seen[one]})
        write(result)
    for confidence, order in [(c, order) for order in orders[: options.checks] for c in CONFIDENCES]:
        simulated = course(models, order, options.layers, partial(needed, confidence=confidence))
        result["checks"].append(checked(decoder, windows.take(order), placement, confidence, simulated))
        write(result)
        print(f"checked {confidence}, {time.perf_counter() - started:.0f} s", flush=True)
    table = markdown(result)
    write_whole(options.out / "early_stop.md", table.encode())
    print(table)


if __name__ == "__main__":
    main()
