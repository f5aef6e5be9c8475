"""Tables and plots of what was measured, with standard errors.

A perplexity's standard error is that of the mean loss over windows, times the perplexity (delta method). Two arms saw
the same windows, so their difference is judged window by window, which is far sharper than the two errors apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prunecomp.compare import Arm, Comparison, Measurement
from prunecomp.io.escape import markdown_table
from prunecomp.report.comparison import RECORD, load_record
from prunecomp.report.plots import perplexity_figure


def perplexity(losses: list[float]) -> tuple[float, float]:
    """Perplexity and its standard error, from nats a token of windows of one length."""
    nats = np.array(losses)
    value = float(np.exp(nats.mean()))
    return value, value * float(nats.std(ddof=1)) / len(nats) ** 0.5


def change(losses: list[float], base: list[float]) -> tuple[float, float]:
    """By how many per cent the perplexity is above ``base``'s, and the standard error of that, over paired windows."""
    ratio, error = perplexity((np.array(losses) - np.array(base)).tolist())
    return 100 * (ratio - 1), 100 * error


def write_report(out: Path) -> None:
    """``tables.md`` and a plot for each stage that has a record under ``out``."""
    lines: list[str] = []
    for record in sorted(out.glob(f"*/{RECORD}")):
        result = load_record(record.parent)
        lines += [f"## {record.parent.name}", "", *setting(result), "", *perplexities(result), "", *gains(result), ""]
        lines += [*claims(result), ""]
        perplexity_figure(result).savefig(record.parent / "perplexity.png", dpi=110)
    (out / "tables.md").write_text("\n".join(lines), encoding="utf-8")


def setting(result: Comparison) -> list[str]:
    text, calibrated = result.texts[0], result.calibration
    return [
        f"{result.num_layers} layers; calibrated on {calibrated.windows} windows of {calibrated.seqlen} tokens of "
        f"`{Path(calibrated.source).name}`; perplexity over {text.windows} windows of {text.seqlen} tokens of each "
        f"kind, with one standard error. N layers are gone."
    ]


def perplexities(result: Comparison) -> list[str]:
    """A row an arm and number of layers, a column a kind of text."""
    kinds = [text.name for text in result.texts]
    rows = [["dense", "", *(shown(*perplexity(result.dense_losses[kind])) for kind in kinds), ""]]
    for one in sorted(result.measurements, key=lambda one: one.layers):
        cells = [shown(*perplexity(one.losses[kind])) for kind in kinds]
        rows.append([one.arm.name, str(one.layers), *cells, " ".join(map(str, one.removed))])
    return markdown_table(["arm", "N", *kinds, "layers in order of removal"], rows)


def gains(result: Comparison) -> list[str]:
    """What each compensation does to the perplexity, in per cent, beside nothing put in place: below zero is better."""
    kinds = [text.name for text in result.texts]
    rows = []
    for one in sorted(result.measurements, key=lambda one: one.layers):
        base = beside(result, one)
        if base is not None:
            rows.append([one.arm.name, str(one.layers), *changes(one, base, kinds)])
    return markdown_table(["against nothing, %", "N", *kinds], rows)


def changes(one: Measurement, base: Measurement, kinds: list[str]) -> list[str]:
    """:func:`change` on each kind of text, with its error."""
    found = [change(one.losses[kind], base.losses[kind]) for kind in kinds]
    return [f"{value:+.1f} ± {error:.1f}" for value, error in found]


CLAIMS = (
    ("the whole method against one-shot, nothing", ("scale", False), ("none", True)),
    ("iterated against one-shot, nothing in both", ("none", False), ("none", True)),
    ("iterated against one-shot, scale in both", ("scale", False), ("scale", True)),
)


def claims(result: Comparison) -> list[str]:
    """What the parts of the paper's method do to the perplexity, in per cent, window by window."""
    kinds = [text.name for text in result.texts]
    rows = []
    for said, *pair in CLAIMS:
        for count in result.layers:
            one, base = (result.measurement(Arm(result.arms[0].metric, *each), count) for each in pair)
            if one is not None and base is not None:
                rows.append([said, str(count), *changes(one, base, kinds)])
    return markdown_table(["claim, %", "N", *kinds], rows) if rows else []


def beside(result: Comparison, one: Measurement) -> Measurement | None:
    """The same arm with nothing put in place; None for that arm itself."""
    bare = Arm(one.arm.metric, "none", one.arm.one_shot, one.arm.parity)
    return None if one.arm == bare else result.measurement(bare, one.layers)


def shown(value: float, error: float) -> str:
    digits = 0 if value >= 1000 else 1 if value >= 100 else 2
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"
