"""Pruning a model object in place, or its structure alone: the same plan as an export, without files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from prunecomp.checkpoint.fold import FoldPlan
from prunecomp.checkpoint.numbers import renumber
from prunecomp.errors import OptionError
from prunecomp.io.values import layer_numbers, listed
from prunecomp.model.checks import check_in_memory
from prunecomp.model.config import GENERATION_LAYERS, prune_stored
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families
from prunecomp.model.stack import LayerStack
from prunecomp.model.unwrap import structure_of

ABSENT = object()
NAME = "_name_or_path"
"""Where a model says it comes from: others fetch its config and tokenizer from there, and would get the dense one's."""


def apply_plan(model: Any, stack: LayerStack, plan: FoldPlan) -> Callable[[], None]:
    """Fold, cut and renumber the layers of ``model``, and its config, in place; returns what puts all of it back, bit
    for bit.

    Raises :class:`OptionError` if the model is not one with the layers that were pruned.
    """
    decoder = structure_of(model)
    model = decoder.model
    check_in_memory(model)
    if decoder.num_layers != stack.num_layers:
        raise OptionError(
            f"the result is of a model with {stack.num_layers} layers, this one has {decoder.num_layers}: "
            "has it been pruned already?"
        )
    parameters = dict(model.named_parameters())  # a tied head is listed once, under the embedding's name
    with ExitStack() as undo:  # one at a time, for with a map it is nearly all of them
        for name, parameter in parameters.items():
            if plan.changes(name):
                tensor = plan.folded(name, parameter.detach())
                undo.callback(parameter.data.copy_, parameter.detach().clone())
                parameter.data.copy_(tensor)
        undo.callback(_cut(model, decoder, stack.alive))
        return undo.pop_all().close


def cut(model: Any, removed: Collection[int]) -> None:
    """Take the layers ``removed`` out of ``model`` in place, by their numbers in it, and nothing else: those that stay
    are renumbered, the config follows them, and no weight changes.

    For tools that restore a pruned model: they need its skeleton before they load its weights, and it may be on the
    meta device. Raises :class:`OptionError` for what is no model and for layers that it does not have, and
    :class:`CheckpointError` for one of an unknown family, without a head, or with an adapter.
    """
    decoder = structure_of(model)
    _cut(decoder.model, decoder, remaining(decoder.num_layers, removed))


def pruned_config(config: Any, removed: Collection[int]) -> Any:
    """A copy of a transformers ``config`` as it is once the layers ``removed``, by their numbers in it, are gone.

    Raises as :func:`cut` does.
    """
    alive = remaining(int(config.num_hidden_layers), removed)
    pruned = copy.deepcopy(config)
    _prune(pruned, alive)
    setattr(pruned, NAME, "")
    return pruned


def remaining(num_layers: int, removed: Collection[int]) -> tuple[int, ...]:
    """The layers that stay. Raises :class:`OptionError` for one that is not there, and where none would stay."""
    gone = set(layer_numbers("removed", removed))
    stray = sorted(layer for layer in gone if layer >= num_layers)
    if stray:
        raise OptionError(f"removed {listed(stray)}: the model has layers 0 to {num_layers - 1}")
    if len(gone) >= num_layers:
        raise OptionError(f"removed: all {num_layers} layers; one must stay")
    return tuple(layer for layer in range(num_layers) if layer not in gone)


def _cut(model: Any, decoder: Decoder, alive: Sequence[int]) -> Callable[[], None]:
    undo = ExitStack()
    owner, _, leaf = decoder.family.layers.rpartition(".")
    place = model.get_submodule(owner)
    undo.callback(setattr, place, leaf, getattr(place, leaf))
    for layer in alive:
        undo.callback(renumber, decoder.layers[layer], layer)
    for number, layer in enumerate(alive):
        renumber(decoder.layers[layer], number)
    setattr(place, leaf, nn.ModuleList([decoder.layers[layer] for layer in alive]))
    undo.callback(_prune(decoder.config, tuple(alive)))
    places = [(decoder.config, NAME), (model, "name_or_path")]
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        places.append((generation, NAME))
    for holder, name in places:
        if getattr(holder, name, ""):
            undo.callback(_set(holder, name, ""))
    for name in GENERATION_LAYERS if generation is not None else ():
        if getattr(generation, name, None) is not None:
            undo.callback(_set(generation, name, None))
    return undo.close


def _prune(config: Any, alive: tuple[int, ...]) -> Callable[[], None]:
    undo, held = ExitStack(), config.to_dict()
    family = families.find(config.model_type)
    for name, value in prune_stored(held, config, family, int(config.num_hidden_layers), alive).items():
        if name not in held or held[name] != value:
            undo.callback(_set(config, name, value))
    return undo.close


def _set(holder: Any, name: str, value: Any) -> Callable[[], None]:
    before = getattr(holder, name, ABSENT)
    setattr(holder, name, value)
    return (lambda: delattr(holder, name)) if before is ABSENT else (lambda: setattr(holder, name, before))


@torch.no_grad()
def tokens_of(model: Any, forward_loop: Callable[[Any], Any]) -> list[dict[str, torch.Tensor]]:
    """The batches that ``forward_loop(model)`` gives to ``model``, as calibration: ``input_ids`` int64 [N, S], with the
    ``attention_mask`` where one is given. No layer is run, and the model is left as it was.

    Raises :class:`OptionError` for a loop that gives no token ids, and what :func:`cut` does for what is no such model.
    """
    decoder = structure_of(model)
    batches: list[dict[str, torch.Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        ids, mask = given.get("input_ids", args[0] if args else None), given.get("attention_mask")
        if not isinstance(ids, torch.Tensor):
            raise OptionError("forward_loop: it gives the model no input_ids, of which windows are made; have it do so")
        kept = {"input_ids": ids, "attention_mask": mask}
        batches.append({name: each.detach().cpu().clone() for name, each in kept.items() if each is not None})

    with decoder.layers_as(()), decoder.backbone.register_forward_pre_hook(note, with_kwargs=True):
        forward_loop(model)
    if not batches:
        raise OptionError("forward_loop: it never called the model that it was given")
    return batches


@contextmanager
def applied_plan(model: Any, stack: LayerStack, plan: FoldPlan) -> Iterator[None]:
    """Within, ``model`` is what :func:`apply_plan` makes of it; afterwards it is bit for bit what it was. The weights
    that a fold changes are held beside it for as long."""
    undo = apply_plan(model, stack, plan)
    try:
        yield
    finally:
        undo()
