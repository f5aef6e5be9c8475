"""Results as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from prunecomp.result import PruneResult, ScoreResult


def rounds_table(result: PruneResult) -> Table:
    # A table folds its title to its own width: what may be long, a path or a name, does not go there.
    table = Table(title=f"{len(result.rounds)} of {result.stack.num_layers} layers removed")
    for heading in ("round", "layer", result.options.metric, "scale", "layer-forwards", "seconds"):
        table.add_column(heading, justify="right")
    for number, r in enumerate(result.rounds, start=1):
        cells = (number, r.layer, f"{r.score:.5f}", f"{r.scale:.5f}", r.layer_forwards, f"{r.seconds:.2f}")
        table.add_row(*map(str, cells))
    return table


def perplexity_table(result: PruneResult) -> Table | None:
    record = result.record()["perplexity"]
    if record is None:
        return None
    table = Table(title=f"perplexity on {record['windows']} x {record['seqlen']} tokens")
    table.add_column("model")
    table.add_column("layers", justify="right")
    table.add_column("perplexity", justify="right")
    table.add_row("dense", str(result.stack.num_layers), f"{record['dense']:.3f}")
    table.add_row("pruned", str(len(result.stack.alive)), f"{record['pruned']:.3f}")
    return table


def scores_table(result: ScoreResult) -> Table:
    table = Table(title="layers, the one to remove first on top")
    for heading in ("rank", "layer", result.metric, "scale"):
        table.add_column(heading, justify="right")
    for rank, (layer, value) in enumerate(sorted(result.scores.items(), key=lambda item: (item[1], item[0])), 1):
        table.add_row(str(rank), str(layer), f"{value:.5f}", f"{result.scales[layer]:.5f}")
    return table


def info_table(info: dict[str, Any]) -> Table:
    table = Table(title=info["model"], show_header=False)
    for key, value in info.items():
        table.add_row(key.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value))
    return table
