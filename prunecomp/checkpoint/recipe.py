"""The same export as a recipe for mergekit: a passthrough merge whose scales do what the fold does."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

from prunecomp.checkpoint.fold import FoldPlan
from prunecomp.errors import OptionError
from prunecomp.model.decoder import Decoder

RECIPE = "mergekit.yml"

HEADER = (
    "# mergekit-yaml {file} OUT: the weights of this folder, made by mergekit (tried with 0.1.5) from the base model.\n"
    "# mergekit sets the number of layers and no other field: take config.json from this folder.\n"
    "# Where that config has a list with an entry a layer, it ends with an error when all weights are written.\n"
)


def check_recipe(
    fold: str,
    compensation: str,
    base: str | None,
    quantised: str | None = None,
    part_of: str | None = None,
    repair: str = "none",
) -> None:
    """Raise :class:`OptionError` for what is known before any work to have no recipe."""
    if part_of is not None:
        raise OptionError(f"--recipe: mergekit does not look for the text decoder of a {part_of} model; leave it out")
    if quantised is not None:
        raise OptionError(f"--recipe: mergekit does not read quantised weights ({quantised}); leave it out")
    if base is None:
        raise OptionError("--recipe: mergekit reads a folder or a hub id, and this model has neither")
    if repair != "none":
        raise OptionError(
            f"--recipe: --repair {repair} can put new weights into layers, which no scale of mergekit's makes; use "
            "--repair none"
        )
    if fold == "down" and compensation != "none":
        raise OptionError(
            "--recipe with --fold down: the embedding and the final norm change too, and mergekit's slices scale "
            "layers alone; use --fold up"
        )


def merge_recipe(decoder: Decoder, plan: FoldPlan, base: str | None, layers: str, quantised: str | None = None) -> str:
    """``plan`` as YAML for mergekit: neighbouring survivors with one scale are a slice. ``layers`` is the path that the
    layers have in the files.

    Passthrough multiplies each tensor by the ``scale`` whose ``filter`` its name contains. Raises :class:`OptionError`
    where that cannot say what the fold does.
    """
    check_recipe(plan.form, "none" if not plan.factors else "scale", base, quantised)
    if layers != decoder.family.layers:
        raise OptionError(
            f"--recipe: the files have the layers as {layers}, where mergekit does not look; leave it out"
        )
    if plan.replaced:
        raise OptionError("--recipe: the repair put new weights into layers, which no scale can make")
    biased = [name for layer in plan.stream_scales for name in decoder.writer_tensors(layer) if name.endswith(".bias")]
    if biased:
        raise OptionError(f"--recipe: {biased[0]} would be scaled, and mergekit's models carry no bias there")
    filters = [writer.rpartition(".")[2] for writer in decoder.family.writers]
    slices = []
    # Neighbours in the base model keep their distance to their place among the survivors.
    runs = groupby(plan.renumber, key=lambda layer: (plan.stream_scales.get(layer, 1.0), layer - plan.renumber[layer]))
    for (scale, _), run in runs:
        kept = list(run)
        source: dict[str, Any] = {"model": base, "layer_range": [kept[0], kept[-1] + 1]}
        if scale != 1.0:
            named: list[dict[str, Any]] = [{"filter": name, "value": scale} for name in filters]
            source["parameters"] = {"scale": [*named, {"value": 1.0}]}
        slices.append({"sources": [source]})
    text: str = yaml_dump({"merge_method": "passthrough", "slices": slices}, sort_keys=False)
    return HEADER.format(file=RECIPE) + text
