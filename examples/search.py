"""An outside search on top of the pruner: which set of N layers costs the least loss when it goes?

    python examples/search.py --layers 4

A small evolutionary search. A genome is a set of N layers; a mutation swaps one of them; a genome's fitness is the loss
of the compensated model on the calibration windows. The metric's own choice is in the first population, so the search
can only improve on it there; the table also shows a text that nothing was fitted on.

The pruner is the backend: genomes are tried in sorted order, each from below, so that two neighbours share their first
removals. ``undo`` goes back to where they part, and only what lies above is run again. Needs no network and no GPU.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunecomp

MODEL = Path(__file__).parent / "reference_model"

Genome = tuple[int, ...]
"""Original indices of the layers to remove, ascending."""


def go_to(pruner: prunecomp.Pruner, genome: Iterable[int]) -> None:
    """Bring the pruner from the removals it has to those of ``genome``, by way of what they share."""
    wanted = list(genome)
    while pruner.removed != wanted[: len(pruner.removed)]:
        pruner.undo()
    for layer in wanted[len(pruner.removed) :]:
        pruner.remove(layer)


def evaluate(pruner: prunecomp.Pruner, genomes: Iterable[Genome], fitness: dict[Genome, float]) -> None:
    """Add the loss, in nats a token, of every genome that is not known yet."""
    for genome in sorted(set(genomes) - fitness.keys()):
        go_to(pruner, genome)
        fitness[genome] = pruner.loss()


def mutate(genome: Genome, num_layers: int, draw: random.Random) -> Genome:
    """Swap one layer for one that stays."""
    out = draw.choice(genome)
    into = draw.choice([layer for layer in range(num_layers) if layer not in genome])
    return tuple(sorted({*genome, into} - {out}))


def search(
    pruner: prunecomp.Pruner, first: Genome, population: int, generations: int, draw: random.Random
) -> dict[Genome, float]:
    """Loss of every genome tried, from ``first`` and random ones on: the better half lives, and has children."""
    num_layers = pruner.stack.num_layers
    fitness: dict[Genome, float] = {}
    alive = {first, *(tuple(sorted(draw.sample(range(num_layers), len(first)))) for _ in range(population - 1))}
    for _ in range(generations):
        evaluate(pruner, alive, fitness)
        parents = sorted(alive, key=lambda genome: (fitness[genome], genome))[: max(1, population // 2)]
        children = {mutate(draw.choice(parents), num_layers, draw) for _ in range(population - len(parents))}
        alive = {*parents, *children}
    evaluate(pruner, alive, fitness)
    return fitness


def choice_of_the_metric(pruner: prunecomp.Pruner, layers: int) -> Genome:
    """What score, remove, compensate, repeat comes to; the pruner is left as it was."""
    for _ in range(layers):
        scores = pruner.score()
        pruner.remove(min(scores, key=lambda layer: (scores[layer], layer)))
    chosen = tuple(sorted(pruner.removed))
    go_to(pruner, ())
    return chosen


def windows_of(text: Path, tokenizer: object, count: int, seqlen: int) -> torch.Tensor:
    """The first windows of a text, int64 [N, S]."""
    ids = torch.tensor(tokenizer(text.read_text(encoding="utf-8"), verbose=False)["input_ids"])  # type: ignore[operator]
    count = min(count, len(ids) // seqlen)
    return ids[: count * seqlen].view(count, seqlen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="layers to remove (default 4)")
    parser.add_argument("--population", type=int, default=10, help="genomes a generation (default 10)")
    parser.add_argument("--generations", type=int, default=6, help="rounds of mutation (default 6)")
    parser.add_argument("--samples", type=int, default=8, help="calibration windows (default 8)")
    parser.add_argument("--seqlen", type=int, default=128, help="tokens of a window (default 128)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="save the pruned model there")
    options = parser.parse_args()
    started = time.perf_counter()

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)  # held by the caller, never written to
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    pruner = prunecomp.pruner_for(
        model, MODEL / "calibration.txt", tokenizer=tokenizer, samples=options.samples, seqlen=options.seqlen,
        seed=options.seed,
    )  # fmt: skip
    unseen = windows_of(MODEL / "evaluation.txt", tokenizer, 4 * options.samples, options.seqlen)

    by_metric = choice_of_the_metric(pruner, options.layers)
    fitness = search(pruner, by_metric, options.population, options.generations, random.Random(options.seed))
    found = min(fitness, key=lambda genome: (fitness[genome], genome))
    forwards = pruner.layer_forwards

    console = Console()
    table = Table(title=f"{options.layers} of {pruner.stack.num_layers} layers: perplexity")
    for heading in ("choice", "removed", "calibration", "unseen text"):
        table.add_column(heading)
    for name, genome in (("none", ()), ("block influence", by_metric), ("search", found)):
        go_to(pruner, genome)
        losses = (pruner.loss(), pruner.loss(unseen))
        table.add_row(name, " ".join(map(str, genome)), *(f"{math.exp(loss):.2f}" for loss in losses))
    console.print(table)
    # A genome on its own: statistics of the dense model and after each removal but the last, then the loss.
    alone = sum(
        pruner.stack.num_layers + sum(pruner.stack.num_layers - k for k in range(1, len(g) + 1)) for g in fitness
    )
    console.print(
        f"{len(fitness)} sets tried in {time.perf_counter() - started:.0f} s and {forwards:g} layer-forwards; "
        f"whole re-runs would have taken {alone}"
    )
    if options.out is not None:
        console.print(f"wrote {pruner.result().save(options.out)}", soft_wrap=True)


if __name__ == "__main__":
    main()
