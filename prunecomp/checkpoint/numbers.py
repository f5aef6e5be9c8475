"""Layers under new numbers: held to what they were under their old ones, before a run and again before an export.

A layer may depend on its number in two ways. transformers may build another layer under another number, by a list, a
period, a threshold or a formula: so the layers that the pruned configuration builds are compared with those that were
measured. Or a layer may look at its number as it runs: so it is run under others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from prunecomp.errors import CheckpointError
from prunecomp.model.config import pruned_copy, untold
from prunecomp.model.decoder import Decoder, call_layer
from prunecomp.model.loader import build_skeleton

ROWS = 8
ROUNDINGS = 64
"""Of the dtype, relative: far above what sums in another order make, far below what a number would."""

NOT_FUNCTION = frozenset({"layer_idx", "training", "gradient_checkpointing"})
"""What a layer has that does not change what it computes here."""

Traits = dict[str, dict[str, Any]]


def renumber(layer: nn.Module, number: int) -> None:
    """Give a layer and its parts their new ``layer_idx``: generation indexes its cache by it."""
    for module in layer.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx = number  # type: ignore[assignment]


def check_layers_move(decoder: Decoder, removed: Collection[int], tokens: torch.Tensor) -> None:
    """Raise :class:`CheckpointError` where a layer of ``decoder`` would do something else once layers below it are
    gone: those ``removed``, for example. A few ``tokens`` [S] are run, through the highest layer of each kind.
    """
    alive = tuple(layer for layer in range(decoder.num_layers) if layer not in removed)
    moved = [layer for number, layer in enumerate(alive) if number != layer]
    if not moved:
        return
    with untold():
        check_built_alike(decoder, alive)
    kinds = {repr(_traits(decoder.layers[layer])): layer for layer in moved}
    with decoder.evaluating():
        stream, arguments = decoder.enter(tokens[:ROWS].unsqueeze(0))
        for (layer,) in decoder.weights.walk([(layer,) for layer in kinds.values()]):
            expected = call_layer(decoder.layers[layer], stream, arguments[layer])
            if not bool(torch.isfinite(expected).all()):
                continue  # the run itself tells where that began
            try:
                for number in range(layer):
                    renumber(decoder.layers[layer], number)
                    got = call_layer(decoder.layers[layer], stream, arguments[layer])
                    error, size = float((got - expected).double().norm()), float(expected.double().norm())
                    if not error <= ROUNDINGS * torch.finfo(stream.dtype).eps * size:
                        raise CheckpointError(
                            f"layer {layer} of this {decoder.config.model_type} model gives something else under the "
                            f"number {number} (off by {error:.1e} of {size:.1e}): its function depends on its number, "
                            "so that no layer below it can go"
                        )
            finally:
                renumber(decoder.layers[layer], layer)


def check_built_alike(decoder: Decoder, alive: Sequence[int]) -> None:
    """Raise :class:`CheckpointError` unless transformers builds from the pruned configuration the very layers that are
    ``alive``, under their new numbers."""
    config = pruned_copy(decoder.config, decoder.family, decoder.num_layers, tuple(alive))
    try:
        skeleton: Any = build_skeleton(config, decoder.dtype)
    except Exception as error:  # whatever the model's class raises for a configuration that contradicts itself
        raise CheckpointError(
            f"transformers builds no model of this {config.model_type} config with {len(alive)} of its "
            f"{decoder.num_layers} layers ({error}): some field of it follows the layers and is not known to"
        ) from error
    built = list(skeleton.get_submodule(decoder.family.layers).children())
    if len(built) != len(alive):
        raise CheckpointError(
            f"the configuration of {len(alive)} layers builds {len(built)}: some other field of this "
            f"{config.model_type} config counts layers too"
        )
    for number, (layer, new) in enumerate(zip(alive, built, strict=True)):
        differing = _differing(_traits(decoder.layers[layer]), _traits(new))
        if differing:
            raise CheckpointError(
                f"layer {layer} of this {config.model_type} model would be another under its new number {number}: "
                f"{differing}. Its function depends on its number, so that no layer below it can go"
            )


def _traits(layer: nn.Module) -> Traits:
    """By the path of each part of a layer: its plain attributes, which say what it does with its weights."""
    return {
        path: {
            name: value
            for name, value in vars(module).items()
            if name not in NOT_FUNCTION and not name.startswith("_") and _plain(value)
        }
        for path, module in layer.named_modules()
    }


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _differing(old: Traits, new: Traits) -> str | None:
    """The first difference in words. An old layer may have more to it: what its holder has put in."""
    for path, traits in new.items():
        if path not in old:
            return f"it would have {path}"
        for name, value in traits.items():
            if name in old[path] and old[path][name] != value:
                where = f"{path}.{name}" if path else name
                return f"{where} is {old[path][name]!r} and would be {value!r}"
    return None
