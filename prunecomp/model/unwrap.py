"""The model inside of what others wrap it in; what cannot be taken out of its wrapper is told, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel

from prunecomp.errors import CheckpointError, OptionError
from prunecomp.io.plain import read_object
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families

SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine", "DTensor")
"""Names of classes that leave each process with a part of the weights."""


def unwrapped(model: Any) -> Any:
    """``model`` without :class:`DataParallel`, DDP and the wrapper of ``torch.compile`` around it.

    Raises :class:`CheckpointError` for a model whose weights are spread over processes, or with an adapter inside.
    """
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            break
    if isinstance(model, nn.Module):
        _refuse_sharded(model)
        _refuse_adapter(model)
    return model


def structure_of(model: Any) -> Decoder:
    """The decoder of a model object, whose weights may be anywhere.

    Raises :class:`OptionError` for what is no model, and :class:`CheckpointError` for one of an unknown family, without
    a head, or with an adapter.
    """
    model = unwrapped(model)
    if not isinstance(model, PreTrainedModel):
        raise OptionError(
            f"a {type(model).__name__} is no model: give a folder, a hub id, or a causal language model of "
            "transformers, itself and not wrapped (merge an adapter first)"
        )
    kind = model.config.model_type
    if hasattr(model.config, "text_config") and kind not in families.known_types():
        raise CheckpointError(f"{kind} has a text decoder inside: to prune that, give the folder of the model instead")
    try:
        return Decoder(model)
    except AttributeError as error:  # no head, say
        raise CheckpointError(
            f"a {type(model).__name__} is no causal language model of {kind} ({error}): give the whole of it, with its "
            "head, as AutoModelForCausalLM loads it"
        ) from None


def _refuse_sharded(model: nn.Module) -> None:
    kinds = {base.__name__ for each in (model, *model.parameters()) for base in type(each).__mro__}
    sharded = next((kind for kind in SHARDED if kind in kinds), None)
    if sharded is not None:
        raise CheckpointError(
            f"the weights of this model are spread over processes ({sharded}), and none has them all: give the folder "
            "of its checkpoint, or the model before it was sharded"
        )


def _refuse_adapter(model: nn.Module) -> None:
    adapter = next(
        (name for name, module in model.named_modules() if hasattr(module, "base_layer") or hasattr(module, "lora_A")),
        None,
    )
    if adapter is not None or hasattr(model, "peft_config"):
        raise CheckpointError(
            f"this model has an adapter inside{f' ({adapter})' if adapter else ''}: merge it into the weights, as in "
            "model = model.merge_and_unload(), or give the base model and train the adapter on the pruned one"
        )


def check_no_adapter_folder(folder: Path) -> None:
    """Raise :class:`CheckpointError` for the folder of an adapter, which names the model that it belongs to."""
    stated = folder / "adapter_config.json"
    if stated.is_file() and not (folder / "config.json").is_file():
        base = read_object(stated, CheckpointError).get("base_model_name_or_path") or "which it does not name"
        raise CheckpointError(
            f"{folder} holds an adapter of peft, and no model. Its base is {base}: prune that and train the adapter "
            "on what is left, or merge the adapter into it first (merge_and_unload of peft)"
        )
