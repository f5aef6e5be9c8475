"""Parts of a record as a report shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunecomp.report.page import Grid

Record = Mapping[str, Any]
WIDTH = 5.0
"""Inches of a picture: it is legible on a telephone."""
ACROSS = "layers removed"
"""What lies along a picture of several models."""


def without_blanks(headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> Grid:
    """A column in which nothing stands is left out."""
    kept = [number for number in range(len(headings)) if any(row[number] for row in rows)]
    return Grid([headings[n] for n in kept], [[row[n] for n in kept] for row in rows], caption)


def measured_on_texts(record: Record) -> dict[str, tuple[float, str]]:
    """By text, the perplexity as a ratio to the dense model's, and both."""
    found = {}
    models = (record.get("profile") or {}).get("models") or []
    for name in models[0]["texts"] if len(models) > 1 else ():
        before, after = (models[n]["texts"][name]["perplexity"] for n in (0, -1))
        found[name] = (_ratio(after["value"], before["value"]), f"{estimated(before, 2)} to {estimated(after, 2)}")
    measured = record.get("perplexity")
    if measured is not None:  # of the export, which the profile is not
        found.pop("eval", None)
        before, after = measured["dense"], measured["pruned"]
        name = Path(measured["source"]).stem
        found[name] = (_ratio(after, before), f"{figure_of(before)} to {figure_of(after)}")
    return found


def _ratio(after: float | None, before: float | None) -> float:
    return math.inf if after is None or before is None else after / before


def agreement_of(record: Record, name: str) -> Any:
    measured = record.get("perplexity") or {}
    return (measured.get("agreement") or {}).get(name)


def estimated(estimate: Any, digits: int = 3) -> str:
    """A value of a record with its standard error."""
    if estimate is None or estimate.get("value") is None:
        return ""
    error = estimate.get("standard_error")
    return f"{estimate['value']:,.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def figure_of(value: float | None) -> str:
    return "" if value is None else f"{value:,.5g}"


def times(ratio: float) -> str:
    return f"{ratio:.2f}\u00d7" if math.isfinite(ratio) else "not finite"


def listed(some: Any) -> str:
    return ", ".join(map(str, some))


def millions(count: float) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
