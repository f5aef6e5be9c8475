"""Config surgery: every field that follows the layers, in one place."""

from __future__ import annotations

import copy
from typing import Any

from prunecomp.errors import CheckpointError
from prunecomp.model.adapter import Family


def prune_config(config: dict[str, Any], family: Family, num_layers: int, alive: tuple[int, ...]) -> dict[str, Any]:
    """The configuration of a model of which only the layers ``alive`` remain; the given one is left alone.

    Lists with one entry a layer are cut with the layers, thresholds move down by the layers removed below them.
    Raises :class:`CheckpointError` for a list whose length is not the number of layers.
    """
    pruned = copy.deepcopy(config)
    pruned["num_hidden_layers"] = len(alive)
    for name in family.layer_lists:
        values = pruned.get(name)
        if values is None:
            continue
        if len(values) != num_layers:
            raise CheckpointError(f"config field {name!r} has {len(values)} entries for {num_layers} layers")
        pruned[name] = [values[layer] for layer in alive]
    for name in family.layer_thresholds:
        threshold = pruned.get(name)
        if threshold is not None:
            removed_below = sum(1 for layer in range(min(threshold, num_layers)) if layer not in alive)
            pruned[name] = threshold - removed_below
    return pruned
