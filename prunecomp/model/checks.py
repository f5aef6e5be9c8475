"""A config and the weights beside it held to each other, before anything is built of them or run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecomp.errors import CheckpointError, PrunecompWarning
from prunecomp.io.values import runs
from prunecomp.model.adapter import Family
from prunecomp.model.quantised.stored import NARROW
from prunecomp.model.weights import StoredTensors, TensorSource

MOST_LAYERS = 2000
"""More than any model has; so many are made in seconds."""

COUNTS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
LEFT_OVER = (r"rotary_emb\.inv_freq", r"\.(input|activation|output|k|v|q)_(global_)?(scale|zero_point)$")
"""Tensors that no model has and that say nothing of it: computed anew, or scales of activations."""

OPTIONAL_COUNTS = ("num_key_value_heads", "intermediate_size", "head_dim", "max_position_embeddings")


def check_config(config: Any, family: Family, path: Path) -> None:
    """Raise :class:`CheckpointError`, naming the field, for a count that is none, or what contradicts it."""
    for name in COUNTS:
        if getattr(config, name, None) is None:
            raise CheckpointError(f"{path} states no {name}")
    check_counts({name: getattr(config, name, None) for name in (*COUNTS, *OPTIONAL_COUNTS)}, {}, path)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    check_depth(layers, family.layer_count, path)
    shared = getattr(config, "num_key_value_heads", None) or heads
    if heads % shared:
        raise CheckpointError(f"{path}: num_attention_heads is {heads}, no multiple of num_key_value_heads, {shared}")
    for name in (*family.layer_lists, *family.layer_indices):
        values = getattr(config, name, None)
        if values is not None and not isinstance(values, list | tuple):
            raise CheckpointError(f"{path}: {name} is {values!r}; a list belongs there")
        if values is not None and name in family.layer_lists and len(values) != layers:
            raise CheckpointError(f"{path}: {name} has {len(values)} entries for {layers} layers")
        if values is not None and name in family.layer_indices and not all(is_layer(v, layers) for v in values):
            raise CheckpointError(f"{path}: {name} is {values!r}; of {layers} layers the last is number {layers - 1}")
    for name in (*family.layer_thresholds, *family.extra_layers):
        value = getattr(config, name, None)
        if value is not None and (type(value) is not int or value < 0):
            raise CheckpointError(f"{path}: {name} is {value!r}; a whole number belongs there")


def check_counts(stated: Mapping[str, Any], attributes: Mapping[str, str], path: Path) -> None:
    """Raise :class:`CheckpointError` for a count that is none, under any of its names."""
    for name in (*COUNTS, *OPTIONAL_COUNTS):
        for known in {name, attributes.get(name, name)}:
            value = stated.get(known)
            if value is not None and (type(value) is not int or value < 1):
                raise CheckpointError(f"{path}: {known} is {value!r}; a whole number from 1 up belongs there")


def check_depth(layers: Any, name: str, path: Path) -> None:
    if isinstance(layers, int | float) and layers > MOST_LAYERS:
        raise CheckpointError(f"{path}: {name} is {layers}; no model has more than {MOST_LAYERS:,} layers")


def check_names(stated: Mapping[str, Any], attributes: Mapping[str, str], path: Path) -> None:
    """Raise :class:`CheckpointError` where a config file gives two names of one field different values."""
    for name, other in attributes.items():
        if name in stated and other in stated and stated[name] != stated[other]:
            raise CheckpointError(
                f"{path}: {name} is {stated[name]!r} and {other} is {stated[other]!r}, two names for one field"
            )


def is_layer(value: Any, layers: int) -> bool:
    return type(value) is int and 0 <= value < layers


def check_layers(checkpoint: TensorSource, config: Any, family: Family) -> None:
    """Raise :class:`CheckpointError` unless the checkpoint holds the layers that the config tells of, and no others.

    Layers behind the last that predict further tokens are others, and known.
    """
    stated = config.num_hidden_layers
    held = held_layers(checkpoint.names(), family)
    extra = sum(getattr(config, name, None) or 0 for name in family.extra_layers)
    missing = [layer for layer in range(stated) if layer not in held]
    stray = sorted(layer for layer in held if layer >= stated + extra)
    if held and (missing or stray):
        which = f"{'lack' if missing else 'hold'} {spans(missing or stray)}"
        raise CheckpointError(
            f"{_folder(checkpoint)}: config.json says {family.layer_count} {stated}, and the weights {which} "
            f"(layers held: {spans(sorted(held))}). Which of them are the model's is for "
            "you to say: correct the config, or take the others out of the weights"
        )


def _folder(checkpoint: TensorSource) -> Path | str:
    return getattr(checkpoint, "folder", "the model")


def held_layers(names: Collection[str], family: Family) -> set[int]:
    """The numbers of the layers that have tensors among the ``names``."""
    prefix = f"{family.layers}."
    numbers = (name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix))
    return {int(number) for number in numbers if number.isdecimal() and len(number) < 10}


def spans(numbers: list[int]) -> str:
    """Ascending numbers in words, as in ``0-5, 99``."""
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs(numbers)]
    return ", ".join(shown[:5]) + (" ..." if len(shown) > 5 else "")


def parameter_places(model: nn.Module) -> list[tuple[str, Any, str]]:
    """Every parameter's name, the module that has it and its name there; a shared one under each of its names."""
    return [
        (f"{prefix}.{leaf}" if prefix else leaf, module, leaf)
        for prefix, module in model.named_modules()
        for leaf, parameter in module._parameters.items()
        if parameter is not None
    ]


def check_tensors(model: Any, checkpoint: StoredTensors) -> None:
    """Raise :class:`CheckpointError` unless the checkpoint has every tensor of the skeleton, in its shape."""
    held = set(checkpoint.names())
    places = parameter_places(model)
    missing = [name for name, _, _ in places if name not in held and not _tied_elsewhere(model, name, held)]
    if missing:
        raise CheckpointError(
            f"{checkpoint.folder} lacks {len(missing)} tensors that its config asks for: {_some(missing)}"
        )
    for name, module, leaf in places:
        if name not in held:
            continue
        shape, wanted = checkpoint.shape(name), tuple(module._parameters[leaf].shape)
        if shape != wanted:
            raise CheckpointError(
                f"{checkpoint.location(name)}: {name} is {list(shape)}, the config asks for {list(wanted)}"
            )
        if not checkpoint.is_floating_point(name) or checkpoint.dtype(name) in NARROW:
            kind = "eight-bit floats" if checkpoint.is_floating_point(name) else "integers"
            raise CheckpointError(
                f"{checkpoint.location(name)}: {name} is stored in {kind}, and the config states no "
                "quantization_config that says what they mean"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _tied_elsewhere(model: Any, name: str, held: set[str]) -> bool:
    """Whether ``name`` is another name of a tensor that the checkpoint holds."""
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", {})
    return ties.get(name) in held or any(source == name and target in held for target, source in ties.items())


def check_named(unnamed: Mapping[str, str], folder: Path) -> None:
    """Raise :class:`CheckpointError` for ``unnamed`` tensors, which lie in shards though the index does not say so."""
    if unnamed:
        name = next(iter(unnamed))
        raise CheckpointError(
            f"{folder / unnamed[name]} holds {name}, and {len(unnamed) - 1} more such tensors lie in the shards, which "
            "the index does not name and transformers would load. Write the checkpoint anew, with a whole index"
        )


def tie_as_stored(model: Any, checkpoint: TensorSource) -> None:
    """Untie, in a skeleton, what the config ties and the checkpoint holds two different tensors for, as transformers
    does: what is stored counts."""
    held = set(checkpoint.names())
    places = {name: (module, leaf) for name, module, leaf in parameter_places(model)}
    for target, source in list(model.all_tied_weights_keys.items()):
        if not {target, source} <= held & set(places):
            continue
        module, leaf = places[target]
        dtype = module._parameters[leaf].dtype
        if torch.equal(checkpoint.read(target).to(dtype), checkpoint.read(source).to(dtype)):
            continue
        module._parameters[leaf] = nn.Parameter(torch.empty_like(module._parameters[leaf]), requires_grad=False)
        del model.all_tied_weights_keys[target]


def warn_of_surprises(model: Any, checkpoint: StoredTensors) -> None:
    """A :class:`PrunecompWarning` for a head that is not tied though the config says so, and for tensors that the model
    does not use."""
    if model.get_expanded_tied_weights_keys(all_submodels=True).keys() - model.all_tied_weights_keys.keys():
        warnings.warn(
            f"{checkpoint.folder}: the config ties the head to the embedding, and the weights hold a head that differs "
            "from it: that one is used, as transformers does",
            PrunecompWarning,
            stacklevel=3,
        )
    unused = unused_tensors(model, checkpoint)
    if unused:
        warnings.warn(
            f"{checkpoint.folder}: the model does not use {len(unused)} of the stored tensors: {_some(unused)}",
            PrunecompWarning,
            stacklevel=3,
        )


def unused_tensors(model: Any, checkpoint: TensorSource) -> list[str]:
    """Names of stored tensors that are no parameter or buffer of the model, and not known to be left over."""
    used = {name for name, _, _ in parameter_places(model)} | {name for name, _ in model.named_buffers()}
    known = re.compile("|".join([*(model._keys_to_ignore_on_load_unexpected or ()), *LEFT_OVER]))
    return [name for name in checkpoint.names() if name not in used and known.search(name) is None]


def check_in_memory(model: Any) -> None:
    """Raise :class:`CheckpointError` for a model whose tensors are not all there, on one device, or whose linear maps
    do not take what its embedding gives."""
    places = [(name, tensor.device) for name, tensor in [*model.named_parameters(), *model.named_buffers()]]
    away = [name for name, device in places if device.type == "meta"]
    if away:
        raise CheckpointError(
            f"{len(away)} tensors of this model have no values here (device meta: offloaded, or never loaded), first "
            f"{away[0]}. Give the folder of its checkpoint instead: what does not fit is streamed from there. What "
            "accelerate keeps in host memory comes back by accelerate.hooks.remove_hook_from_submodules(model)"
        )
    devices = sorted({str(device) for _, device in places})
    if len(devices) > 1:
        raise CheckpointError(
            f"this model lies on several devices ({', '.join(devices)}). Move it to one, or give the folder of its "
            "checkpoint instead: what does not fit is streamed from there"
        )
    embedding: Any = model.get_input_embeddings()
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    for name, module in linear.items() if getattr(model, "hf_quantizer", None) is None else ():
        if module.weight.dtype != embedding.weight.dtype:
            raise CheckpointError(
                f"{name} of this model is in {module.weight.dtype}, and its embedding in {embedding.weight.dtype}: "
                "such a model does not run. Convert the whole of it, as in model.to(torch.float32)"
            )
