"""What the report of an export shows, all of it from its record; what a record lacks is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from prunecomp.evaluation.tasks import TaskScore
from prunecomp.io.values import runs
from prunecomp.metrics.bootstrap import LEVEL
from prunecomp.names import RECORD
from prunecomp.report.drawing import svg
from prunecomp.report.figures import draw_lines, draw_norms, draw_probes, draw_scores, draw_seam_errors, draw_seconds
from prunecomp.report.page import Answers, Block, Command, Facts, Grid, Picture, Section, Strip, Tiles
from prunecomp.report.profile import UNASKED, tasks_grid
from prunecomp.report.reading import (
    WIDTH,
    Record,
    agreement_of,
    estimated,
    figure_of,
    listed,
    measured_on_texts,
    millions,
    times,
    without_blanks,
)  # fmt: skip
from prunecomp.report.similarity import draw_similarity
from prunecomp.report.tables import decimal
from prunecomp.report.target import target_section

LAYERS = (
    "By their number in the dense model, from the embedding up. A removed layer (grey) bears the round that it went "
    "in, a repaired one is violet, and a seam (orange) has the scale on the stream there."
)
ROUNDS = (
    "Every score of every round, crosses where a layer went. “Lowest with” is the probability that the chosen score is "
    "the lowest of all, by a bootstrap over the calibration sequences."
)
CAPABILITIES = (
    "Small problems made from a seed, each asked as recognition (the likeliest of four answers) and as production "
    "(written by the model)."
)
EXPORTING = ("writing", "reading back", "measuring the export")
"""Parts of the work that follow once a record's ``seconds`` are over."""
TOLD = {"round": "choosing", "gates": "looking at gates"}
"""Parts of the work by other names than the record has."""
REPRODUCE = f"prunecomp prune --like {RECORD} --out AGAIN"


def title_of(record: Record) -> str:
    return f"{Path(record['model']).name}: {len(record['removed'])} of {record['num_layers']} layers removed"


def sections_of(record: Record, collected: Record | None = None) -> list[Section]:
    """The sections of one export; ``collected`` is what :func:`prunecomp.collect` gave of the dense model."""
    return [
        Section("In short", [*_tiles(record), *_what(record)], wide=True),
        Section("Layers", [_strip(record), *_norms(record, collected)], LAYERS, wide=True),
        target_section(record),
        Section("Rounds", [*_scores(record), rounds_grid(record)], ROUNDS, wide=True),
        Section("Repair", list(_repair(record)), "Fitted to the dense model once all layers were chosen."),
        Section("Capabilities", list(_profile(record)), CAPABILITIES),
        Section("Text", list(_text(record))),
        Section("Similarity", list(_similarity(collected)), "A bright square on the diagonal turns the stream little."),
        Section("What it took", list(_cost(record))),
        prompts_section((record.get("profile") or {}).get("models") or []),
        Section("Do it again", list(_again(record)), wide=True),
    ]


def rounds_grid(record: Record) -> Grid:
    columns: dict[str, list[str]] = {"round": [], "layers": [], record["options"]["metric"]: []}
    for name in ("lowest with", "runner-up", f"margin ({LEVEL:.0%})", "scale", "chosen", "layer-forwards", "seconds"):
        columns[name] = []
    for number, one in enumerate(record["rounds"], start=1):
        sure, after, margin = (one.get(name) for name in ("probability", "runner_up", "margin"))
        between = one.get("margin_interval") or []
        cells = [
            str(number), listed(one["block"]), figure_of(one["score"]), "" if sure is None else f"{sure:.1%}",
            "" if after is None else str(after),
            "" if margin is None else " to ".join(map(figure_of, between)) if between else figure_of(margin),
            f"{one['scale']:.5g}", one.get("chosen") or "", f"{one['layer_forwards']:g}", f"{one['seconds']:.2f}",
        ]  # fmt: skip
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    return without_blanks(list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def _tiles(record: Record) -> Iterator[Block]:
    left = record["num_layers"] - len(record["removed"])
    tiles = [("layers", f"{record['num_layers']} → {left}", f"{left / record['num_layers']:.0%} are left")]
    size = record.get("size")
    if size:
        for name, how in (("parameters", millions), ("bytes", decimal)):
            dense, pruned = (size[model][name] for model in ("dense", "pruned"))
            tiles.append(
                (name.replace("bytes", "files"), f"{how(dense)} → {how(pruned)}", f"{pruned / dense:.0%} are left")
            )
    for text, (ratio, both) in measured_on_texts(record).items():
        tiles.append((f"perplexity on {text}", times(ratio), both))
    top1, kl = agreement_of(record, "top1"), agreement_of(record, "kl")
    if top1 is not None:
        tiles.append(("same next token", f"{top1['value']:.0%}", "of those the dense model finds likeliest"))
    if kl is not None:
        tiles.append(("KL to dense", f"{kl['value']:.3f}", "nats a token"))
    yield Tiles(tiles)


def _what(record: Record) -> Iterator[Block]:
    options, windows, repair = record["options"], record["calibration"], record.get("repair")
    pairs: list[tuple[str, object]] = [
        ("model", record["model"]),
        ("removed", f"{listed(record['removed'])}, in this order"),
        ("chosen by", f"{options['metric']}{', all at once' if options.get('one_shot') else ''}"),
        ("compensation", options["compensation"]),
        ("repair", repair["taken"] if repair else "none"),
        ("calibration", f"{windows['source']}, {windows['windows']} windows of {windows['seqlen']} tokens"),
        ("computed in", record["dtype"]),
    ]
    yield Facts(pairs)


def _strip(record: Record) -> Block:
    went = {layer: number for number, one in enumerate(record["rounds"], start=1) for layer in one["block"]}
    repair = record.get("repair") or {}
    fitted = {gap["layers"][0] - 1: gap for gap in repair.get("gaps", ()) if gap["fitted"]}
    seams = {gap["layers"][-1]: gap["scale"] for gap in repair.get("gaps", ())}
    # Those that the choosing left: where gaps meet, their scales multiply.
    if not seams and repair.get("taken", "loop") == "loop":
        seams = {gap[-1]: math.prod(one["scale"] for one in record["rounds"] if one["block"][0] in gap)
                 for gap in runs(sorted(record["removed"]))}  # fmt: skip
    # A map goes through all that is above it.
    mapped = min((gap["layers"][-1] for gap in repair.get("gaps", ()) if gap.get("condition") is not None),
                 default=record["num_layers"])  # fmt: skip
    cells = []
    for layer in range(record["num_layers"]):
        if layer in went:
            cells.append(("gone", str(layer), f"r{went[layer]}"))
        elif layer in fitted:
            cells.append(("fitted", str(layer), f"repaired: {', '.join(fitted[layer]['fitted'])}"))
        elif layer > mapped:
            cells.append(("fitted", str(layer), "rewritten by a map"))
        else:
            cells.append(("kept", str(layer), "kept"))
        if seams.get(layer, 1.0) != 1.0 and layer != record["num_layers"] - 1:
            cells.append(("seam", f"\u00d7{seams[layer]:.3g}", "the seam's scale on the stream"))
    return Strip("", cells)


def _norms(record: Record, collected: Record | None) -> Iterator[Block]:
    if collected is not None and collected.get("norm"):
        draw = partial(draw_norms, norms=collected["norm"], removed=record["removed"])
        yield Picture(svg("norms", "Norms of the dense model's states", WIDTH, 3.0, draw))


def _scores(record: Record) -> Iterator[Block]:
    rounds = [one for one in record["rounds"] if any(value is not None for value in one["scores"].values())]
    if rounds:
        draw = partial(draw_scores, rounds=rounds, num_layers=record["num_layers"])
        height = min(8.0, 1.4 + 0.26 * len(rounds))
        yield Picture(svg("scores", "Scores of every round by layer", WIDTH, height, draw))


def _repair(record: Record) -> Iterator[Block]:
    repair = record.get("repair")
    if not repair:
        return
    gaps = repair["gaps"]
    if any(gap["error_before"] or gap["error_after"] for gap in gaps):
        yield Picture(svg("seams", "Error at each seam", WIDTH, 3.0, partial(draw_seam_errors, gaps=gaps)))
    if repair["losses"]:
        texts = list(next(iter(repair["losses"].values())))
        rows = [[f"{name} (taken)" if name == repair["taken"] else name, *map(figure_of, losses.values())]
                for name, losses in repair["losses"].items()]  # fmt: skip
        taken = [number for number, name in enumerate(repair["losses"]) if name == repair["taken"]]
        best = frozenset((number, 0) for number in taken)
        headings = ["repair", *(Path(text).name for text in texts)]
        yield Grid(headings, rows, "Nats a token on what was left out of the fit", best)
    if gaps:
        rows = [
            [listed(gap["layers"]), listed(gap["fitted"]) or "nothing", f"{gap['scale']:.5g}",
             "" if gap.get("condition") is None else f"{gap['condition']:.3g}"]
            for gap in gaps
        ]  # fmt: skip
        yield without_blanks(["gap", "fitted below it", "scale", "map's condition number"], rows)


def _similarity(collected: Record | None) -> Iterator[Block]:
    if collected is not None and collected.get("cosine"):
        draw = partial(draw_similarity, cosines=collected["cosine"])
        yield Picture(svg("similarity", "Similarity of all pairs of states", WIDTH, 4.6, draw))


def _text(record: Record) -> Iterator[Block]:
    ratios = {text: [(float(len(record["removed"])), ratio)] for text, (ratio, _) in measured_on_texts(record).items()}
    if len(ratios) > 1:
        draw = partial(draw_lines, lines=ratios, across="layers removed", up="perplexity, times dense")
        yield Picture(svg("ratios", "Perplexity as a ratio", WIDTH, 1.2 + 0.35 * len(ratios), draw))
    measured = record.get("perplexity")
    if measured is None:
        return
    errors = measured.get("standard_error") or {}
    beside = [estimated(agreement_of(record, name)) for name in ("kl", "top1")]
    rows = [
        [name, figure_of(measured[name]), figure_of(errors.get(name)), *(beside if name == "pruned" else ["", ""])]
        for name in ("dense", "pruned")
    ]
    caption = f"{measured['source']}: {measured['windows']} windows of {measured['seqlen']} tokens; the pruned model's "
    headings = ["model", "perplexity", "± standard error", "KL to dense, nats", "top-1 agreement"]
    yield without_blanks(headings, rows, f"{caption}perplexity is that of {measured['measured_on']}")


def _profile(record: Record) -> Iterator[Block]:
    found = record.get("profile")
    if not found:
        return
    models = found["models"]
    if models[0]["probes"]:
        height = 1.3 + 0.3 * len(models[0]["probes"]) * max(1, 0.6 * (len(models) - 1))
        said = (
            f"Up to {found['items']} problems each. Lines: the dense score and the {LEVEL:.0%} interval of what is lost"
        )
        picture = svg("probes", "Probes", WIDTH, height, partial(draw_probes, models=models))
        yield Picture(picture, f"{said} or won, paired.")
    yield from generation(models)
    yield from asked(models)
    left = [UNASKED.format(found["left_out"])] if found["left_out"] else []
    if found["at_chance"]:
        left.append(f"The dense model is no better than a guess: {listed(found['at_chance'])}.")
    if left:
        yield Facts([("left out", " ".join(left))])


def generation(models: Sequence[Record]) -> Iterator[Block]:
    """How the models of a profile write, if they were asked to."""
    if not models[0]["generation"]:
        return
    rows = []
    for model in models:
        one = model["generation"]
        same = ["", ""] if one["identical"] is None else [f"{one['until_different']:.1f}", f"{one['identical']:.0%}"]
        rows.append([model["name"], f"{one['tokens']:.1f}", *same, f"{one['repetition']:.0%}", f"{one['ended']:.0%}"])
    headings = ["model", "tokens", "as dense for", "all as dense", "repeated 4-grams", "ends by itself"]
    yield without_blanks(headings, rows, f"Greedy answers to {len(models[0]['written'])} chat prompts")


def asked(models: Sequence[Record]) -> Iterator[Block]:
    """Scores of the models of a profile in tasks of lm-eval, if there were some."""
    if models[0].get("tasks"):
        each = [(model["name"], [TaskScore.from_record(one) for one in model["tasks"]]) for model in models]
        title, headings, rows = tasks_grid(each, dense=0)
        yield Grid(headings, rows, title[0].upper() + title[1:])


def prompts_section(models: Sequence[Record]) -> Section:
    """What the models of a profile answered, side by side."""
    each = []
    for answers in zip(*(model["written"] for model in models), strict=True):
        said = [(model["name"], one["text"], "" if one["ended"] else f"(to the limit of {len(one['tokens'])} tokens)")
                for model, one in zip(models, answers, strict=True)]  # fmt: skip
        each.append((answers[0]["prompt"], said))
    return Section("The same prompts", [Answers(each)] if each else [], "Greedy answers of all models.", wide=True)


def _cost(record: Record) -> Iterator[Block]:
    cost = record.get("cost") or {}
    timed = {TOLD.get(name, name): spent for name, spent in cost.get("seconds", {}).items()}
    if not set(timed) - set(EXPORTING):  # there was no clock for each
        timed["choosing"] = math.fsum(one["seconds"] for one in record["rounds"])
        timed["repairing"] = (record.get("repair") or {}).get("seconds", 0.0)
    rest = record["seconds"] - math.fsum(spent for name, spent in timed.items() if name not in EXPORTING)
    parts = {"the rest" if cost else "loading, evaluating": max(0.0, rest), **timed}
    parts = {name: spent for name, spent in parts.items() if spent >= 0.005}
    if parts:
        height = 0.9 + 0.32 * len(parts)
        yield Picture(svg("seconds", "Where the seconds went", WIDTH, height, partial(draw_seconds, parts=parts)))
    pairs: list[tuple[str, object]] = [
        ("layer-forwards", f"{record['layer_forwards']:g} passes of the calibration windows through one layer"),
        ("weights", "streamed, a layer at a time" if record.get("streamed") else "all on the device"),
        ("layers compiled", "yes" if record.get("compiled") else "no"),
    ]
    if cost:
        memory = cost["memory"]
        pairs.append(("memory planned", listed(f"{decimal(n)} ({tier})" for tier, n in memory["planned"].items() if n)))
        if memory["used"] is not None:
            pairs.append(("memory used", f"{decimal(memory['used'])} at the most, {memory['of']}"))
    latency = (record.get("target") or {}).get("latency")
    if latency is not None:
        read, written = latency["tokens"] / math.fsum(latency["prefill"]), 1 / math.fsum(latency["decode"])
        pairs.append(("all layers, dense", f"read {read:,.0f} tokens a second and write {written:,.1f}, one sequence"))
    yield Facts(pairs)
    rows = [
        [name, f"{one['seconds']:.2f}", f"{one['layer_forwards']:g}", f"{one['layer_forwards'] / one['seconds']:,.1f}",
         f"{one['tokens_per_second']:,.0f}"]
        for name, one in cost.get("passes", {}).items()
    ]  # fmt: skip
    if rows:
        yield Grid(SPEED, rows, "Speed of the passes; tokens go through as many layers as the dense model has")


SPEED = ["pass", "seconds", "layer-forwards", "of them a second", "tokens a second"]


def _again(record: Record) -> Iterator[Block]:
    if record.get("command"):
        yield Command(record["command"])
    yield Command(REPRODUCE)
    verified, versions = record.get("verified"), {"prunecomp": record["prunecomp"], **record["versions"]}
    pairs: list[tuple[str, object]] = [
        ("seed", record["seed"]),
        ("calibration", f"SHA-256 of its windows {record['calibration']['digest']}"),
        ("versions", listed(f"{name} {number}" for name, number in versions.items())),
        ("read back", "no" if not verified else f"{verified['tensors']} tensors, logits within "
                      f"{verified['logits_error']:.2g} of the measured model's"),
    ]  # fmt: skip
    yield Facts(pairs)
