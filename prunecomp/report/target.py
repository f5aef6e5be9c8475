"""What a run to a target measured on its way, and why it stopped where it did: from its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from prunecomp.errors import OptionError
from prunecomp.options.aims import Aim, aims
from prunecomp.report.drawing import svg
from prunecomp.report.figures import Panel, draw_target, finite
from prunecomp.report.page import Block, Facts, Grid, Picture, Section
from prunecomp.report.reading import WIDTH, Record, listed

LEAD = (
    "What was looked at after each round, on the model as it would be written. The run ends with the first limit that "
    "is broken, or once all goals are reached; the last model that keeps to all limits (marked) is written."
)
DENSE = {"perplexity": 1.0, "agreement": 1.0, "kl": 0.0, "latency": 1.0}
"""What the dense model has, by definition; of a ``task:`` it has lost 0."""


def target_section(record: Record) -> Section:
    """Empty for a run to a number of layers. Raises :class:`ValueError` for a target that is none."""
    return Section("Target", list(_blocks(record)) if record.get("target") else [], LEAD)


def _blocks(record: Record) -> Iterator[Block]:
    target, taken = record["target"], len(record["removed"])
    try:
        asked = aims("target", target["asked"])
    except OptionError as error:
        raise ValueError(str(error)) from error
    gates = target["gates"]
    places = [number for number, gate in enumerate(gates) if gate["layers"] == taken]
    measured = {name: None for gate in gates for name in gate["seen"]}
    # What was measured besides is told without a limit.
    others = [Aim(name, 0.0, "") for name in measured if name not in {aim.name for aim in asked}]
    columns = [*asked, *others]
    rows = [
        [str(gate["layers"]), *(_cell(aim, gate) for aim in columns), _verdict(asked, gate, gate["layers"] == taken)]
        for gate in gates
    ]
    headings = ["removed", *map(str, asked), *(aim.name for aim in others), ""]
    pairs: list[tuple[str, object]] = [
        ("goals", listed(aim for aim in asked if aim.goal) or "none"),
        ("limits", listed(aim for aim in asked if not aim.goal) or "none"),
        ("ended by", _end(asked, gates[-1])),
        ("the last that held", f"{taken} of {record['num_layers']} layers removed: "
         + listed(f"{aim.name} {_cell(aim, gates[place])}" for place in places for aim in asked)),
    ]  # fmt: skip
    scores = [f"{name} {score:.1%}" for name, score in target.get("dense", {}).items()]
    if scores:
        pairs.append(("the dense model solves", listed(scores)))
    yield Facts(pairs)
    panels = [_panel(aim, record) for aim in asked]
    picture = svg("target", "What was asked for, by layers removed", WIDTH, 0.7 + 1.3 * len(panels),
                  partial(draw_target, panels=panels, taken=taken))  # fmt: skip
    yield Picture(picture, "Red: what was asked for. Crosses: missed. Dotted: the model that was taken.")
    best = frozenset((place, column) for place in places for column in range(len(headings)))
    caption = "perplexity and latency: times the dense model's; task: what it solves more or less; kl: nats a token"
    yield Grid(headings, rows, caption, best)


def _cell(aim: Aim, gate: Mapping[str, Any]) -> str:
    if aim.name not in gate["seen"]:
        return ""
    value = gate["seen"][aim.name]
    return "not finite" if value is None else aim.shown(value)


def _missed(asked: list[Aim], gate: Mapping[str, Any]) -> tuple[list[Aim], list[Aim]]:
    """Limits that are broken, and goals that are not reached."""
    missed = [aim for aim in asked if str(aim) in gate["missed"]]
    return [aim for aim in missed if not aim.goal], [aim for aim in missed if aim.goal]


def _verdict(asked: list[Aim], gate: Mapping[str, Any], taken: bool) -> str:
    broken, ahead = _missed(asked, gate)
    if broken:
        return f"breaks {listed(broken)}"
    return f"held; not yet {listed(ahead)}" if ahead else "taken" if taken else "held"


def _end(asked: list[Aim], last: Mapping[str, Any]) -> str:
    broken, ahead = _missed(asked, last)
    if broken:
        return f"{listed(f'{aim.name} {_cell(aim, last)}' for aim in broken)} with {last['layers']} removed"
    goals = any(aim.goal for aim in asked)
    return "all goals being reached" if goals and not ahead else "no further layer being free to go"


def _panel(aim: Aim, record: Record) -> Panel:
    """What stood against an aim in each round, from the dense model on where it is known what that has."""
    gates = record["target"]["gates"]
    dense = record["num_layers"] if aim.name == "layers" else 0.0 if aim.task else DENSE.get(aim.name)
    points = [] if dense is None else [(0, float(dense))]
    points += [(gate["layers"], finite(gate["seen"].get(aim.name))) for gate in gates]
    missed = {gate["layers"] for gate in gates if str(aim) in gate["missed"]}
    return Panel(str(aim), points, aim.value, missed)
