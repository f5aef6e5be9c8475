"""The README of an export: what was removed, what took its place, and how to do it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

from prunecomp.io.escape import code, code_block, markdown, one_line
from prunecomp.model.source.licence import Licence


def model_card(base: str, record: dict[str, Any], licence: Licence, quantised: str | None, command: str) -> str:
    """The card as Markdown with YAML front matter, as the Hub reads it: what ``prunecomp.json`` records, what the
    ``base`` model says of itself, and the ``command`` that made the export."""
    options, windows, verified = record["options"], record["calibration"], record["verified"]
    repair = None if record["repair"] is None else record["repair"]["taken"]
    front = {
        "base_model": one_line(base),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["prunecomp", "pruning", "depth-pruning"],
        **{name: _plain(value) for name, value in licence.fields.items()},
    }
    count = sum(len(one["block"]) for one in record["rounds"])
    calibration = f"{windows['source']}, {windows['windows']} windows of {windows['seqlen']} tokens"
    calibration += ", each from BOS on" if windows["bos"] == "each" else ""
    read_back = "no" if verified is None else (
        f"{verified['tensors']} tensors, logits within {verified['logits_error']:.2g} of the measured model's"
    )  # fmt: skip
    versions = {"prunecomp": record["prunecomp"], **record["versions"]}
    lines = [
        f"---\n{yaml_dump(front, sort_keys=False)}---",
        "",
        f"# {markdown(Path(base).name)}, {record['num_layers'] - count} of {record['num_layers']} layers",
        "",
        f"{count} whole decoder layers of {code(base)} were removed with no training"
        f"{_repaired(options['compensation'] if repair is None else repair)} "
        "(Prune&Comp, [arXiv 2507.18212](https://arxiv.org/abs/2507.18212)).",
        "",
        f"Layers in the order of their removal, by their number in the base model; metric {code(options['metric'])}, "
        f"compensation {code(options['compensation'])}"
        f"{'' if repair is None else f', then repair {code(repair)} in its place'}, folded `{options['fold']}`:",
        "",
        "| round | layers | score | scale |",
        "| ---: | --- | ---: | ---: |",
        *(
            f"| {number} | {', '.join(map(str, one['block']))} | "
            f"{'' if one['score'] is None else format(one['score'], '.6g')} | {one['scale']:.6g} |"
            for number, one in enumerate(record["rounds"], start=1)
        ),
        "",
        *_perplexity(record["perplexity"]),
        "Made by",
        "",
        code_block(command),
        "",
        *_quantised(quantised, options["compensation"]),
        f"- Calibration: {markdown(calibration)}; SHA-256 of its windows `{windows['digest']}`.",
        f"- Verified by reading it back: {markdown(read_back)}.",
        f"- Versions: {', '.join(f'{name} {number}' for name, number in versions.items())}.",
        f"- Licence of the base model: {markdown(licence)}.",
        "- `prunecomp.json` beside this file has every score of every round.",
        "- To train it further: `layer_map` in `config.json` says which layer of the base each one was, and "
        "`examples/heal.py` of prunecomp distils the base into it along that map, with LoRA.",
    ]
    return "\n".join(lines) + "\n"


def base_name(model: str) -> str:
    """What a card calls the model that was pruned: a hub id without its revision, or the name of a folder."""
    return Path(model).resolve().name if Path(model).is_dir() else model.partition("@")[0]


def _plain(value: Any) -> Any:
    """A licence field for YAML: its text on one line."""
    return [_plain(entry) for entry in value] if isinstance(value, list) else one_line(value)


def _repaired(how: str) -> str:
    if how == "none":
        return ", and nothing was put in their place"
    return ", and what they left behind was put right in the weights that remain"


def _quantised(method: str | None, compensation: str) -> list[str]:
    if method is None:
        return []
    rest = "no weight was changed" if compensation == "none" else "what was folded went into their scales"
    return [f"- Quantised ({markdown(method)}), as the base model is: the quantised values are copied, {rest}."]


def _perplexity(measured: dict[str, Any] | None) -> list[str]:
    if measured is None:
        return []
    return [
        f"Perplexity on {markdown(measured['source'])} ({measured['windows']} windows of {measured['seqlen']} tokens): "
        f"{measured['dense']:.2f} before, {measured['pruned']:.2f} after (measured on {measured['measured_on']}).",
        "",
    ]
