"""Config surgery: every field that follows the layers, in one place."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedConfig

from prunecomp.errors import CheckpointError, PrunecompWarning
from prunecomp.model.adapter import Family
from prunecomp.model.checks import is_layer

GENERATION_LAYERS = ("assistant_early_exit", "dola_layers")
CODE = ("auto_map", "custom_pipelines", "trust_remote_code")
COUNT = re.compile(r"layers?$")
PATTERN = re.compile(r"pattern$")
ELSEWHERE = re.compile(r"encoder|vision|audio|image|mtp|nextn|predict|shared|quantization|rope")
"""In the name of a field, that it is of other layers, or of none."""

LAYER_MAP = "layer_map"
"""For each layer that is left, its number in the model that it was pruned from: for what heals it by that model."""

TEXT = "text_config"
"""Where a multimodal model's configuration has that of its text decoder."""


def written_out(stored: dict[str, Any], config: Any, family: Family) -> dict[str, Any]:
    """A stored configuration with all that follows the layers in it, taken from the ``config`` that it was read into.

    A file may leave out what transformers fills in from the number of layers (the kinds of Gemma's layers, say); it
    would be filled in anew, and wrongly, when the layers are fewer.
    """
    explicit = dict(stored)
    for name in family.layer_fields:
        if stored.get(name) is None and getattr(config, name, None) is not None:
            explicit[name] = copy.deepcopy(getattr(config, name))
    return explicit


def prune_stored(
    stored: dict[str, Any], config: Any, family: Family, num_layers: int, alive: tuple[int, ...]
) -> dict[str, Any]:
    """What ``config.json`` says once only the layers ``alive`` remain, from the file as ``stored`` and the ``config``
    of the decoder that it was read into; of a multimodal model the part that tells of that decoder is cut.

    :data:`LAYER_MAP` says which layer each was. Raises as :func:`prune_config` does.
    """
    stored = {name: value for name, value in stored.items() if name != LAYER_MAP}  # of an earlier pruning
    nested = stored.get(TEXT) if stored.get("model_type") != config.model_type else None
    explicit = written_out(stored if nested is None else nested, config, family)
    pruned = prune_config(explicit, family, num_layers, alive)
    for one, other in type(config).attribute_map.items():  # two names for one field
        for name, twin in ((one, other), (other, one)):
            if name in explicit and twin in pruned and pruned[twin] != explicit.get(twin):
                pruned[name] = pruned[twin]
    known = {*family.layer_fields, *family.layer_periods, *(family.sparse_period or ())}
    pruned = follow_layers(pruned, {*known, *(name for name in pruned if pruned[name] != explicit.get(name))},
                           num_layers, alive)  # fmt: skip
    if nested is None:
        return {**pruned, LAYER_MAP: list(alive)}
    return {**follow_layers(stored, {TEXT}, num_layers, alive), TEXT: pruned, LAYER_MAP: list(alive)}


def pruned_copy(config: Any, family: Family, num_layers: int, alive: tuple[int, ...]) -> Any:
    """A copy of a decoder's ``config`` as it is once only the layers ``alive`` remain. Raises as :func:`prune_config`
    does."""
    pruned = copy.deepcopy(config)
    for name, value in prune_stored({}, pruned, family, num_layers, alive).items():
        setattr(pruned, name, value)
    return pruned


@contextmanager
def untold() -> Iterator[None]:
    """Within, no warning of what does not outlive a removal: it is told of when it is left out of what is written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrunecompWarning)
        yield


def follow_layers(
    config: dict[str, Any], known: Collection[str], num_layers: int, alive: tuple[int, ...]
) -> dict[str, Any]:
    """``config`` with the fields that run by layers, by the look of them, as they are with the layers ``alive``; those
    that are ``known`` stay. A warning names what was changed.

    Other software puts its own fields into a config: a second count, a list with an entry a layer, or of layers.
    """
    changed = {
        name: new
        for name, value in config.items()
        if name not in {*known, *PreTrainedConfig().to_dict()}
        and (new := _followed(name, value, num_layers, alive, inside=False)) != value
    }
    if changed:
        warnings.warn(
            f"config.json: {', '.join(sorted(changed))} seem to run by layers and follow them, though nothing is known "
            "of these fields",
            PrunecompWarning,
            stacklevel=2,
        )
    return {**config, **changed}


def _followed(name: str, value: Any, num_layers: int, alive: tuple[int, ...], *, inside: bool) -> Any:
    """What a field becomes; ``inside`` of another one it has to speak of layers."""
    number = {layer: position for position, layer in enumerate(alive)}
    if "token" in name or ELSEWHERE.search(name):
        return value
    by_name = "layer" in name
    if isinstance(value, list) and by_name and value and _are_layers(value, num_layers):
        return [number[layer] for layer in value if layer in number]
    if isinstance(value, list) and len(value) == num_layers and (by_name or not inside):
        return [value[layer] for layer in alive]
    if isinstance(value, str) and len(value) == num_layers and PATTERN.search(name):
        return "".join(value[layer] for layer in alive)
    if isinstance(value, dict) and by_name and value and all(str(key).isdecimal() for key in value):
        return {str(number[int(key)]): entry for key, entry in value.items() if int(key) in number}
    if isinstance(value, dict):
        return {key: _followed(str(key), entry, num_layers, alive, inside=True) for key, entry in value.items()}
    if type(value) is int and value == num_layers and COUNT.search(name):
        return len(alive)
    return value


def _are_layers(values: list[Any], num_layers: int) -> bool:
    """Whether these are numbers of layers, ascending."""
    return all(is_layer(value, num_layers) for value in values) and values == sorted(set(values))


def without_code(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration without what refers to code that came with the model, and is not copied or run; ``name`` says in
    the warning what it is of."""
    kept = {field: value for field, value in config.items() if field not in CODE}
    if kept != config:
        warnings.warn(
            f"{name}: {', '.join(sorted(config.keys() - kept.keys()))} is left out: it refers to code that comes with "
            "the model, which is neither run nor copied",
            PrunecompWarning,
            stacklevel=2,
        )
    nested = {field: without_code(value, name) for field, value in kept.items() if isinstance(value, dict)}
    return {**kept, **nested}


def prune_config(config: dict[str, Any], family: Family, num_layers: int, alive: tuple[int, ...]) -> dict[str, Any]:
    """The configuration of a model of which only the layers ``alive`` remain; the given one is left alone.

    Lists with one entry a layer are cut with the layers, lists of layers renumbered, thresholds move down by the layers
    removed below them, and what a period says is said by a list, where layers move within the period. Raises
    :class:`CheckpointError` for a list whose length is not the number of layers.
    """
    pruned = copy.deepcopy(config)
    pruned[family.layer_count] = len(alive)
    number = {layer: position for position, layer in enumerate(alive)}
    if family.sparse_period is not None:
        _write_out_period(pruned, *family.sparse_period, num_layers)
    for name in family.layer_lists:
        values = pruned.get(name)
        if values is None:
            continue
        if len(values) != num_layers:
            raise CheckpointError(f"config field {name!r} has {len(values)} entries for {num_layers} layers")
        pruned[name] = [values[layer] for layer in alive]
    for name in family.layer_indices:
        if pruned.get(name) is not None:
            pruned[name] = [number[layer] for layer in pruned[name] if layer in number]
    for name in family.layer_thresholds:
        threshold = pruned.get(name)
        if threshold is not None:
            removed_below = sum(1 for layer in range(min(threshold, num_layers)) if layer not in alive)
            pruned[name] = threshold - removed_below
    for name in family.layer_periods:
        # Software that knows the period and not the list still reads what is left where whole periods went.
        if name in pruned and not _keeps_places(number, pruned[name]):
            del pruned[name]
    for name in family.extra_layers:
        if pruned.get(name):
            warnings.warn(
                f"{name} is {pruned[name]} and becomes 0: layers that predict further tokens, behind the last one, "
                "are dropped; the stream they were trained on is no longer there",
                PrunecompWarning,
                stacklevel=2,
            )
            pruned[name] = 0
    return pruned


def prune_generation(config: dict[str, Any]) -> dict[str, Any]:
    """A generation config without the fields that name layers: which to leave early at, which to contrast.

    They were chosen for layers that may be gone, or do something else in their new place; a warning says so.
    """
    gone = [name for name in GENERATION_LAYERS if config.get(name) is not None]
    if gone:
        warnings.warn(
            f"generation_config.json: {', '.join(gone)} is left out: it names layers of the model as it was",
            PrunecompWarning,
            stacklevel=2,
        )
    return {name: value for name, value in config.items() if name not in gone}


def _keeps_places(number: dict[int, int], period: Any) -> bool:
    """Whether every layer that remains, by its old and new number, has the place within a period that it had."""
    return isinstance(period, int) and period > 0 and all(old % period == new % period for old, new in number.items())


def _write_out_period(config: dict[str, Any], period: str, indices: str, num_layers: int) -> None:
    """Put the layers off a period into the list that overrules it, and make the period 1."""
    step = config.get(period) or 1
    if step != 1:
        off = {layer for layer in range(num_layers) if (layer + 1) % step != 0}
        config[indices] = sorted(off | set(config.get(indices) or []))
        config[period] = 1
