"""Results as tables for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.filesize import decimal as _decimal

from prunecomp.engine.states import Tier
from prunecomp.metrics.bootstrap import LEVEL
from prunecomp.pruning.plan import RunPlan
from prunecomp.pruning.result import SEAMS, PruneResult
from prunecomp.pruning.scores import ScoreResult
from prunecomp.report.console import Table


def decimal(nbytes: float) -> str:
    return _decimal(int(nbytes))


def rounds_table(result: PruneResult) -> Table:
    # A table folds its title to its own width: what may be long, a path or a name, does not go there.
    title = f"{len(result.removed)} of {result.stack.num_layers} layers removed"
    columns: dict[str, list[str]] = {
        "round": [str(number) for number in range(1, len(result.rounds) + 1)],
        "layer": [", ".join(map(str, r.block)) for r in result.rounds],
        result.options.metric: ["" if r.score is None else f"{r.score:.5f}" for r in result.rounds],
        "lowest with": ["" if r.probability is None else f"{r.probability:.1%}" for r in result.rounds],
        "runner-up": ["" if r.runner_up is None else f"{r.runner_up} (+{r.margin:.5f})" for r in result.rounds],
        "scale": [f"{r.scale:.5f}" for r in result.rounds],
        "chosen": [r.chosen or "" for r in result.rounds],
        "sequences": [str(r.sequences) for r in result.rounds],
        "layer-forwards": [f"{r.layer_forwards:g}" for r in result.rounds],
        "seconds": [f"{r.seconds:.2f}" for r in result.rounds],
    }
    for heading in ("lowest with", "runner-up", "chosen"):
        if not any(columns[heading]):
            del columns[heading]
    if result.options.confidence is None:
        del columns["sequences"]
    return Table.of(title, list(columns), zip(*columns.values(), strict=True))


def repair_tables(result: PruneResult) -> list[Table]:
    """What a repair saw and what it did, where there was one."""
    repair = result.repair
    if repair is None:
        return []
    rows = [
        (", ".join(map(str, gap.layers)), ", ".join(gap.fitted) or "nothing", f"{gap.scale:.5f}",
         f"{gap.error_before:.4f} to {gap.error_after:.4f}")
        for gap in repair.gaps
    ]  # fmt: skip
    headings = ["gap", "fitted below it", "scale", "error at the seam"]
    gaps = Table.of(f"repair: {repair.taken}", headings, rows, left=["fitted below it"])
    gaps.caption = f"{repair.layer_forwards:.1f} layer-forwards, {repair.seconds:.1f} s"
    if not repair.losses:
        return [gaps]
    seen = [
        [f"{name} (taken)" if name == repair.taken else name, *(f"{loss:.4f}" for loss in losses.values())]
        for name, losses in repair.losses.items()
    ]
    headings = ["repair", *(Path(name).name for name in next(iter(repair.losses.values())))]
    return [Table.of("nats a token on what was left out of the fit", headings, seen, left=["repair"]), gaps]


def gates_table(result: PruneResult) -> Table | None:
    """How far a target let the run go."""
    if result.target is None:
        return None
    others = {name: None for gate in result.target.gates for name in gate.seen if name.startswith(("task:", "latency"))}
    rows = []
    for gate in result.target.gates:
        seen = [
            "" if name not in gate.seen else form.format(gate.seen[name])
            for name, form in (
                ("perplexity", "{:.3f}x"),
                ("kl", "{:.3f}"),
                ("agreement", "{:.1%}"),
                *((name, "{:.3f}x" if name == "latency" else "{:+.1%}") for name in others),
            )
        ]
        sizes = f"{gate.seen['params']:,}", decimal(gate.seen["size"])
        rows.append([str(gate.layers), *sizes, *seen, ", ".join(gate.missed)])
    headings = ["gone", "parameters", "size", "perplexity", "KL", "top-1", *others, "missed"]
    table = Table.of(f"target: {', '.join(result.target.asked)}", headings, rows, left=["missed"])
    scores = "".join(f"; {name}: {score:.1%} dense" for name, score in result.target.dense.items())
    table.caption = f"the last that breaks no limit is what is written{scores}"
    return table


def perplexity_table(result: PruneResult) -> Table | None:
    record = result.record()["perplexity"]
    if record is None:
        return None
    errors = [one.perplexity.standard_error for one in result.quality]
    dense, pruned = ("" if error is None else f"{error:.3f}" for error in errors)
    agreement = result.quality[1].agreement
    beside = () if agreement is None else (agreement.kl.shown(), agreement.top1.shown())
    rows = [
        ("dense", str(result.stack.num_layers), f"{record['dense']:.3f}", dense),
        ("pruned", str(len(result.stack.alive)), f"{record['pruned']:.3f}", pruned, *beside),
    ]
    headings = ["model", "layers", "perplexity", "± standard error", "KL to dense", "top-1 agreement"]
    title = f"perplexity on {record['windows']} x {record['seqlen']} tokens"
    table = Table.of(title, headings, rows, left=["model"])
    table.caption = f"pruned: {record['measured_on']}" + (f"; agreement: of {SEAMS}" if beside else "")
    return table


def scores_table(result: ScoreResult) -> Table:
    interval, rows = [f"{LEVEL:.0%} interval"] if result.intervals else [], []
    for rank, (layer, value) in enumerate(sorted(result.scores.items(), key=lambda item: (item[1], item[0])), 1):
        between = ["{:.5f} to {:.5f}".format(*result.intervals[layer])] if interval else []
        rows.append([str(rank), str(layer), f"{value:.5f}", *between, f"{result.scales[layer]:.5f}"])
    headings = ["rank", "layer", result.metric, *interval, "scale"]
    return Table.of("layers, the one to remove first on top", headings, rows)


def info_table(info: dict[str, Any]) -> Table:
    table = Table(title=info["model"], show_header=False)
    for key, value in info.items():
        if value is None or value == []:
            continue
        number = isinstance(value, int) and not isinstance(value, bool)
        shown = ", ".join(value) if isinstance(value, list) else f"{value:,}" if number else str(value)
        table.add_row(key.replace("_", " "), shown)
    return table


def backends_table(seen: dict[str, Any]) -> Table:
    rows = [[choice[name] for name in ("operation", "device", "backend", "reason")] for choice in seen["active"]]
    headings = ["operation", "device", "active", "why"]
    table = Table.of(f"back ends of the statistics (requested: {seen['requested']})", headings, rows, left=headings)
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
    rows = [
        ["boundaries kept", *(str(placement.capacity.get(tier, 0)) for tier in Tier)],
        ["peak", *(decimal(placement.peak_nbytes.get(tier, 0)) for tier in Tier)],
        ["micro-batch", f"{placement.micro_batch} windows", "", ""],
        ["layers compiled", "yes" if plan.compiled else "no", "", ""],
    ]
    title = f"{plan.windows} x {plan.seqlen} tokens, {plan.dtype} on {plan.device}"
    where = Table.of(title, ["", "device", "host", "disk"], rows, left=[""])
    where.caption = f"weights: {weights}; a layer {decimal(shape.layer_nbytes)}, the rest {decimal(shape.outer_nbytes)}"
    stretches = {"first round": plan.first_round, "a later one": plan.later_round, "the repair, at most": plan.repair,
                 "in all": plan.total}  # fmt: skip
    rows = [
        [name, f"{part.layer_forwards:.1f}", f"{part.flops / 1e12:.2f}", decimal(part.weight_nbytes),
         decimal(sum(part.state_nbytes.values()))]
        for name, part in stretches.items()
    ]  # fmt: skip
    title = f"work for {plan.layers} removals; at most {plan.most_layer_forwards} layer-forwards"
    work = Table.of(title, ["", "layer-forwards", "TFLOP", "weights moved", "states moved"], rows, left=[""])
    caption = "rounds after the first: on average, if cuts fall anywhere with equal chance"
    if plan.target:
        caption += f". Target: {', '.join(plan.target)}; limits are looked at after each round"
    work.caption = f"{caption}. {plan.metric} adds to each {plan.adds}" if plan.adds else caption
    rates = {
        "compute": f"{plan.rates.flops / 1e12:.3g} TFLOP/s",
        "host link": f"{decimal(plan.rates.link or 0)}/s",
        "reading weights": f"{decimal(plan.rates.checkpoint or 0)}/s",
        "disk": f"{decimal(plan.rates.disk or 0)}/s",
    }
    rows = [[resource, rates[resource], f"{seconds:,.1f}"] for resource, seconds in plan.seconds.items()]
    title = f"time at the rates measured here; the bound is {plan.bound}"
    return [where, work, Table.of(title, ["resource", "rate", "seconds"], rows, left=["resource"])]
