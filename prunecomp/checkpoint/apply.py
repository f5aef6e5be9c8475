"""Pruning a model object in place: the same plan as an export, without files."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from prunecomp.checkpoint.config import prune_stored
from prunecomp.checkpoint.fold import FoldPlan
from prunecomp.checkpoint.numbers import renumber
from prunecomp.errors import OptionError
from prunecomp.model.checks import check_in_memory
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack


def apply_plan(model: nn.Module, stack: LayerStack, plan: FoldPlan) -> None:
    """Fold, cut and renumber the layers of ``model``, and its config, in place.

    Raises :class:`OptionError` if the model is not one with the layers that were pruned.
    """
    decoder = Decoder(model)
    check_in_memory(model)
    if decoder.num_layers != stack.num_layers:
        raise OptionError(
            f"the result is of a model with {stack.num_layers} layers, this one has {decoder.num_layers}: "
            "has it been pruned already?"
        )
    parameters = dict(model.named_parameters())  # a tied head is listed once, under the embedding's name
    folded = {
        name: plan.folded(name, parameter.detach()) for name, parameter in parameters.items() if plan.changes(name)
    }
    for name, tensor in folded.items():
        parameters[name].data.copy_(tensor)
    survivors = [decoder.layers[layer] for layer in stack.alive]
    for number, layer in enumerate(survivors):
        renumber(layer, number)
    owner, _, leaf = decoder.family.layers.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.ModuleList(survivors))
    config: Any = decoder.config
    held = config.to_dict()
    for name, value in prune_stored(held, config, decoder.family, stack.num_layers, stack.alive).items():
        if name not in held or held[name] != value:
            setattr(config, name, value)


@contextmanager
def applied_plan(model: nn.Module, stack: LayerStack, plan: FoldPlan) -> Iterator[None]:
    """Within, ``model`` is what :func:`apply_plan` makes of it; afterwards it is bit for bit what it was. The weights
    that a fold changes are held beside it for as long."""
    decoder = Decoder(model)
    owner, _, leaf = decoder.family.layers.rpartition(".")
    layers = getattr(model.get_submodule(owner), leaf)
    held = {name: p.detach().clone() for name, p in model.named_parameters() if plan.changes(name)}
    attributes = copy.deepcopy(vars(decoder.config))
    try:
        apply_plan(model, stack, plan)
        yield
    finally:
        setattr(model.get_submodule(owner), leaf, layers)
        for number, layer in enumerate(layers):
            renumber(layer, number)
        for name, tensor in held.items():
            model.get_parameter(name).data.copy_(tensor)
        vars(decoder.config).clear()
        vars(decoder.config).update(attributes)
