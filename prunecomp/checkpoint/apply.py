"""Pruning a model object in place: the same plan as an export, without files."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunecomp.checkpoint.fold import FoldPlan
from prunecomp.checkpoint.numbers import renumber
from prunecomp.errors import OptionError
from prunecomp.model.checks import check_in_memory
from prunecomp.model.config import prune_stored
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
