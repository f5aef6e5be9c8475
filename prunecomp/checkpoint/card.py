"""The README of an export: what was removed, what took its place, and how to do it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

from prunecomp.io.escape import code, code_block, markdown, one_line
from prunecomp.model.source.licence import Licence


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

    @classmethod
    def of(cls, record: dict[str, Any], licence: Licence, quantised: str | None, command: str) -> Card:
        """From what ``prunecomp.json`` records, and what the base model says of itself; ``command`` made the export."""
        base, options, windows, verified = (record[name] for name in ("model", "options", "calibration", "verified"))
        return cls(
            base=Path(base).resolve().name if Path(base).is_dir() else base.partition("@")[0],
            licence=licence,
            num_layers=record["num_layers"],
            removals=[(one["block"], one["score"], one["scale"]) for one in record["rounds"]],
            metric=options["metric"],
            compensation=options["compensation"],
            repair=None if record["repair"] is None else record["repair"]["taken"],
            fold=options["fold"],
            command=command,
            calibration=f"{windows['source']}, {windows['windows']} windows of {windows['seqlen']} tokens"
            + (", each from BOS on" if windows["bos"] == "each" else ""),
            digest=windows["digest"],
            versions={"prunecomp": record["prunecomp"], **record["versions"]},
            perplexity=record["perplexity"],
            quantised=quantised,
            verified="no"
            if verified is None
            else f"{verified['tensors']} tensors, logits within {verified['logits_error']:.2g} of the measured model's",
        )


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
        "- To train it further: `layer_map` in `config.json` says which layer of the base each one was, and "
        "`examples/heal.py` of prunecomp distils the base into it along that map, with LoRA.",
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
