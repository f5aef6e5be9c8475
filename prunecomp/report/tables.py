"""Results as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.filesize import decimal as _decimal

from prunecomp.engine.states import Tier
from prunecomp.pruning.plan import RunPlan
from prunecomp.pruning.result import PruneResult, ScoreResult
from prunecomp.report.console import Table


def decimal(nbytes: float) -> str:
    return _decimal(int(nbytes))


def rounds_table(result: PruneResult) -> Table:
    # A table folds its title to its own width: what may be long, a path or a name, does not go there.
    table = Table(title=f"{len(result.removed)} of {result.stack.num_layers} layers removed")
    columns: dict[str, list[str]] = {
        "round": [str(number) for number in range(1, len(result.rounds) + 1)],
        "layer": [", ".join(map(str, r.block)) for r in result.rounds],
        result.options.metric: ["" if r.score is None else f"{r.score:.5f}" for r in result.rounds],
        "scale": [f"{r.scale:.5f}" for r in result.rounds],
        "chosen": [r.chosen or "" for r in result.rounds],
        "sequences": [str(r.sequences) for r in result.rounds],
        "layer-forwards": [f"{r.layer_forwards:g}" for r in result.rounds],
        "seconds": [f"{r.seconds:.2f}" for r in result.rounds],
    }
    if not any(columns["chosen"]):
        del columns["chosen"]
    if result.options.confidence is None:
        del columns["sequences"]
    for heading in columns:
        table.add_column(heading, justify="right")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
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
    table.caption = f"pruned: {record['measured_on']}"
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


def backends_table(seen: dict[str, Any]) -> Table:
    table = Table(title=f"back ends of the statistics (requested: {seen['requested']})")
    for heading in ("operation", "device", "active", "why"):
        table.add_column(heading)
    for choice in seen["active"]:
        table.add_row(choice["operation"], choice["device"], choice["backend"], choice["reason"])
    table.add_section()
    for device, backends in seen["available"].items():
        for backend, answer in backends.items():
            table.add_row("", device, f"{backend}", "available" if answer == "yes" else f"not available: {answer}")
    return table


def plan_tables(plan: RunPlan) -> list[Table]:
    """Placement, work, and where the time goes."""
    placement, shape = plan.placement, plan.shape
    weights = (
        "all on the device"
        if placement.group_size is None
        else f"streamed, {placement.group_size} layer(s) at a time, the next on its way"
    )
    where = Table(title=f"{plan.windows} x {plan.seqlen} tokens, {plan.dtype} on {plan.device}")
    for heading in ("", "device", "host", "disk"):
        where.add_column(heading, justify="left" if not heading else "right")
    where.add_row("boundaries kept", *(str(placement.capacity.get(tier, 0)) for tier in Tier))
    where.add_row("peak", *(decimal(placement.peak_nbytes.get(tier, 0)) for tier in Tier))
    where.add_row("micro-batch", f"{placement.micro_batch} windows", "", "")
    where.caption = f"weights: {weights}; a layer {decimal(shape.layer_nbytes)}, the rest {decimal(shape.outer_nbytes)}"
    where.add_row("layers compiled", "yes" if plan.compiled else "no", "", "")
    work = Table(title=f"work for {plan.layers} removals; at most {plan.most_layer_forwards} layer-forwards")
    for heading in ("", "layer-forwards", "TFLOP", "weights moved", "states moved"):
        work.add_column(heading, justify="left" if not heading else "right")
    for name, part in (("first round", plan.first_round), ("a later one", plan.later_round), ("in all", plan.total)):
        work.add_row(
            name, f"{part.layer_forwards:.1f}", f"{part.flops / 1e12:.2f}", decimal(part.weight_nbytes),
            decimal(sum(part.state_nbytes.values())),
        )  # fmt: skip
    caption = "rounds after the first: on average, if cuts fall anywhere with equal chance"
    work.caption = f"{caption}. {plan.metric} adds to each {plan.adds}" if plan.adds else caption
    time = Table(title=f"time at the rates measured here; the bound is {plan.bound}")
    for heading in ("resource", "rate", "seconds"):
        time.add_column(heading, justify="left" if heading == "resource" else "right")
    rates = {
        "compute": f"{plan.rates.flops / 1e12:.3g} TFLOP/s",
        "host link": f"{decimal(plan.rates.link or 0)}/s",
        "reading weights": f"{decimal(plan.rates.checkpoint or 0)}/s",
        "disk": f"{decimal(plan.rates.disk or 0)}/s",
    }
    for resource, seconds in plan.seconds.items():
        time.add_row(resource, rates[resource], f"{seconds:,.1f}")
    return [where, work, time]
