"""Several stops on the way of one model, shown together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from prunecomp.report.drawing import svg
from prunecomp.report.figures import draw_lines
from prunecomp.report.page import Block, Picture, Section
from prunecomp.report.reading import (
    WIDTH,
    Record,
    agreement_of,
    estimated,
    listed,
    measured_on_texts,
    times,
    without_blanks,
)


def curve_section(records: Sequence[Record]) -> Section:
    """Records of exports of one model, each after another number of removals: what is left of it on the way."""
    stops = sorted(records, key=lambda record: len(record["removed"]))
    found = [(float(len(record["removed"])), measured_on_texts(record)) for record in stops]
    texts = list(dict.fromkeys(text for _, measured in found for text in measured))
    ratios = {
        text: [(0.0, 1.0), *((gone, measured[text][0]) for gone, measured in found if text in measured)]
        for text in texts
    }
    shares = [(0.0, 1.0), *((gone, top1["value"]) for record, (gone, _) in zip(stops, found, strict=True)
                            if (top1 := agreement_of(record, "top1")) is not None)]  # fmt: skip
    across = "layers removed"
    blocks: list[Block] = []
    if ratios:
        draw = partial(draw_lines, lines=ratios, across=across, up="perplexity, times dense")
        blocks.append(Picture(svg("curve", "Perplexity by layers removed", WIDTH, 3.6, draw)))
    if len(shares) > 1:
        draw = partial(draw_lines, lines={"top-1": shares}, across=across, up="top-1 agreement with dense", log=False)
        blocks.append(Picture(svg("curve-agreement", "Agreement by layers removed", WIDTH, 3.2, draw)))
    rows = [
        [
            f"{gone:g}", str(record["num_layers"] - len(record["removed"])),
            *(times(measured[text][0]) if text in measured else "not measured" for text in texts),
            estimated(agreement_of(record, "top1")), estimated(agreement_of(record, "kl")), listed(record["removed"]),
        ]
        for record, (gone, measured) in zip(stops, found, strict=True)
    ]  # fmt: skip
    headings = ["removed", "left", *texts, "top-1 agreement", "KL, nats", "layers"]
    blocks.append(without_blanks(headings, rows, "Perplexity as a ratio to the dense model's"))
    return Section("The curve", blocks, "One model after each number of removals, beside the dense one.", wide=True)
