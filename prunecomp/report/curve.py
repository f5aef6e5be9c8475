"""Several stops on the way of one model, shown together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from prunecomp.report.drawing import svg
from prunecomp.report.exported import asked, generation, prompts_section
from prunecomp.report.figures import draw_lines
from prunecomp.report.page import Block, Grid, Picture, Section
from prunecomp.report.reading import (
    ACROSS,
    WIDTH,
    Record,
    agreement_of,
    estimated,
    listed,
    measured_on_texts,
    millions,
    times,
    without_blanks,
)

COST = "Passes of all windows through one layer. Exports are not in it."
SPENT = {"layer_forwards": "of the calibration", "evaluation_forwards": "of the evaluation", "seconds": "seconds"}
CAPABILITIES = "Problems made from a seed, the same for all; the mean over probes is beside the dense model's."


def curve_sections(records: Sequence[Record], cost: Record | None = None) -> list[Section]:
    """Records of exports of one model, each after another number of removals: what is left of it on the way; and the
    ``cost`` of the run that made them, if it was one."""
    stops = sorted(records, key=lambda record: len(record["removed"]))
    models = _profiled(stops)
    return [
        _curve(stops), Section("Capabilities", list(_capabilities(models)), CAPABILITIES, wide=True),
        prompts_section(models), Section("What it took", [] if cost is None else [_cost(cost, stops[-1])], COST),
    ]  # fmt: skip


def _cost(cost: Record, last: Record) -> Block:
    alone = f"{len(last['removed'])} removed, in a run of its own"
    rows = [[name, *(f"{one[key]:,.5g}" for key in SPENT)]
            for name, one in (("all in one run", cost), (alone, cost["largest_alone"]))]  # fmt: skip
    return Grid(["", *SPENT.values()], rows)


def _profiled(stops: Sequence[Record]) -> list[Record]:
    """The dense model and the pruned ones of profiles that asked the same."""
    found: list[Record] = []
    for record in stops:
        profile = record.get("profile")
        if not profile or len(profile["models"]) < 2:
            continue
        dense, pruned = profile["models"][0], profile["models"][-1]
        found = found or [dense]
        if all(dense.get(name) == found[0].get(name) for name in ("probes", "written", "tasks")):
            found.append({**pruned, "name": f"{len(record['removed'])} removed", "removed": record["removed"]})
    return found


def _capabilities(models: Sequence[Record]) -> Iterator[Block]:
    if not models:
        return
    probes = models[0]["probes"]
    lines = {}
    for way in dict.fromkeys(probe["way"] for probe in probes):
        means = [math.fsum(probe["score"] for probe in model["probes"] if probe["way"] == way) for model in models]
        places = [float(len(model["removed"])) for model in models]
        if means[0]:
            lines[way] = [(gone, mean / means[0]) for gone, mean in zip(places, means, strict=True)]
    if lines:
        draw = partial(draw_lines, lines=lines, across=ACROSS, up="problems solved, times dense", log=False)
        yield Picture(svg("curve-probes", "Problems solved by layers removed", WIDTH, 3.2, draw))
    if probes:
        rows = [
            [f"{each[0]['probe']} ({each[0]['way']})", *(f"{probe['score']:.0%}" for probe in each)]
            for each in zip(*(model["probes"] for model in models), strict=True)
        ]
        yield Grid(["probe", *(model["name"] for model in models)], rows, "Share of problems solved")
    yield from asked(models)
    yield from generation(models)


def _curve(stops: Sequence[Record]) -> Section:
    found = [(float(len(record["removed"])), measured_on_texts(record)) for record in stops]
    texts = list(dict.fromkeys(text for _, measured in found for text in measured))
    ratios = {
        text: [(0.0, 1.0), *((gone, measured[text][0]) for gone, measured in found if text in measured)]
        for text in texts
    }
    shares = [(0.0, 1.0), *((gone, top1["value"]) for record, (gone, _) in zip(stops, found, strict=True)
                            if (top1 := agreement_of(record, "top1")) is not None)]  # fmt: skip
    blocks: list[Block] = []
    if ratios:
        draw = partial(draw_lines, lines=ratios, across=ACROSS, up="perplexity, times dense")
        blocks.append(Picture(svg("curve", "Perplexity by layers removed", WIDTH, 3.6, draw)))
    if len(shares) > 1:
        draw = partial(draw_lines, lines={"top-1": shares}, across=ACROSS, up="top-1 agreement with dense", log=False)
        blocks.append(Picture(svg("curve-agreement", "Agreement by layers removed", WIDTH, 3.2, draw)))
    rows = [
        [
            f"{gone:g}", str(record["num_layers"] - len(record["removed"])),
            millions(record["size"]["pruned"]["parameters"]) if record.get("size") else "",
            *(times(measured[text][0]) if text in measured else "not measured" for text in texts),
            estimated(agreement_of(record, "top1")), estimated(agreement_of(record, "kl")),
            (record.get("repair") or {}).get("taken", ""), listed(record["removed"]),
        ]
        for record, (gone, measured) in zip(stops, found, strict=True)
    ]  # fmt: skip
    headings = ["removed", "left", "parameters", *texts, "top-1 agreement", "KL, nats", "repair", "layers"]
    blocks.append(without_blanks(headings, rows, "Perplexity as a ratio to the dense model's"))
    return Section("The curve", blocks, "One model after each number of removals, beside the dense one.", wide=True)
