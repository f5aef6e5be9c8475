"""The README of an export: what was removed, what took its place, and how to do it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

from prunecomp.io.escape import code, code_block, markdown, one_line

CARD = "README.md"
LICENCE_FIELDS = ("license", "license_name", "license_link")
LICENCE_FILES = ("LICENSE*", "LICENCE*", "COPYING*")


@dataclass(frozen=True)
class Licence:
    """What the base model says of its own: the fields of its card, or else the name of a file."""

    fields: dict[str, Any] = field(default_factory=dict)
    file: str | None = None

    def __str__(self) -> str:
        if self.fields:
            return ", ".join(str(value) for value in self.fields.values())
        return f"see {self.file}" if self.file else "not stated"


@dataclass(frozen=True)
class Card:
    """Everything a card tells."""

    base: str
    licence: Licence
    num_layers: int
    removals: Sequence[tuple[Sequence[int], float | None, float]]
    """For each round the layers, the score they went for, if there is one, and the scale they left behind."""
    metric: str
    compensation: str
    fold: str
    command: str
    calibration: str
    digest: str
    versions: dict[str, str]
    perplexity: dict[str, Any] | None
    verified: str
    quantised: str | None = None
    repair: str | None = None
    """What a repair at the end took in the place of the compensations, if there was one."""


def read_licence(folder: Path) -> Licence:
    """From the front matter of a base model's card, or the name of its licence file. A card that cannot be read states
    nothing: it is no part of the model."""
    card = folder / CARD
    try:
        stated = (metadata_load(card) or {}) if card.is_file() else {}
    except Exception:  # YAML errors of a parser that is not ours to import, and whatever else a free text may cause
        stated = {}
    files = sorted(path.name for pattern in LICENCE_FILES for path in folder.glob(pattern))
    fields = {name: stated[name] for name in LICENCE_FIELDS if stated.get(name)} if "license" in stated else {}
    return Licence(fields, files[0] if files else None)


def model_card(card: Card) -> str:
    """The card as Markdown with YAML front matter, as the Hub reads it."""
    front = {
        "base_model": one_line(card.base),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["prunecomp", "pruning", "depth-pruning"],
        **{name: _plain(value) for name, value in card.licence.fields.items()},
    }
    count = sum(len(layers) for layers, _, _ in card.removals)
    kept = card.num_layers - count
    lines = [
        f"---\n{yaml_dump(front, sort_keys=False)}---",
        "",
        f"# {markdown(Path(card.base).name)}, {kept} of {card.num_layers} layers",
        "",
        f"{count} whole decoder layers of {code(card.base)} were removed with no training"
        f"{_repair(card)} (Prune&Comp, [arXiv 2507.18212](https://arxiv.org/abs/2507.18212)).",
        "",
        f"Layers in the order of their removal, by their number in the base model; metric {code(card.metric)}, "
        f"compensation {code(card.compensation)}"
        f"{'' if card.repair is None else f', then repair {code(card.repair)} in its place'}, folded `{card.fold}`:",
        "",
        "| round | layers | score | scale |",
        "| ---: | --- | ---: | ---: |",
        *(
            f"| {number} | {', '.join(map(str, layers))} | {'' if score is None else f'{score:.6g}'} | {scale:.6g} |"
            for number, (layers, score, scale) in enumerate(card.removals, start=1)
        ),
        "",
        *_perplexity(card.perplexity),
        "Made by",
        "",
        code_block(card.command),
        "",
        *_quantised(card),
        f"- Calibration: {markdown(card.calibration)}; SHA-256 of its windows `{card.digest}`.",
        f"- Verified by reading it back: {markdown(card.verified)}.",
        f"- Versions: {', '.join(f'{name} {number}' for name, number in card.versions.items())}.",
        f"- Licence of the base model: {markdown(card.licence)}.",
        "- `prunecomp.json` beside this file has every score of every round.",
    ]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """A licence field for YAML: its text on one line."""
    return [_plain(entry) for entry in value] if isinstance(value, list) else one_line(value)


def _repair(card: Card) -> str:
    if (card.compensation if card.repair is None else card.repair) == "none":
        return ", and nothing was put in their place"
    return ", and what they left behind was put right in the weights that remain"


def _quantised(card: Card) -> list[str]:
    if card.quantised is None:
        return []
    rest = "no weight was changed" if card.compensation == "none" else "what was folded went into their scales"
    return [f"- Quantised ({markdown(card.quantised)}), as the base model is: the quantised values are copied, {rest}."]


def _perplexity(measured: dict[str, Any] | None) -> list[str]:
    if measured is None:
        return []
    return [
        f"Perplexity on {markdown(measured['source'])} ({measured['windows']} windows of {measured['seqlen']} tokens): "
        f"{measured['dense']:.2f} before, {measured['pruned']:.2f} after (measured on {measured['measured_on']}).",
        "",
    ]
