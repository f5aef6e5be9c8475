"""The matrices that a repair can fit anew: what a layer's sublayers end in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack, Overlay


@dataclass(frozen=True)
class Writer:
    """A linear map within a layer, and what stands between it and the stream."""

    path: str
    multiplier: float = 1.0
    norm: str | None = None

    def module(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule(self.path)

    def transposed(self, layer: nn.Module) -> bool:
        """Whether its weight is [k, d], the other way round than a linear map's."""
        return isinstance(self.module(layer), Conv1D)

    def width(self, layer: nn.Module) -> int:
        """Features that it maps from."""
        weight: torch.Tensor = self.module(layer).get_parameter("weight")
        return int(weight.shape[0 if self.transposed(layer) else 1])


def mlp_writer(decoder: Decoder, layer: int) -> Writer | None:
    """The map that ends the layer's MLP, or of experts the shared ones'; None where there are experts alone."""
    family, module = decoder.family, decoder.layers[layer]
    found = next((path for path in family.mlp_writers if has(module, path)), None)
    return None if found is None else Writer(found, multiplier(decoder), family.mlp_norm)


def attention_writer(decoder: Decoder, layer: int) -> Writer | None:
    """The map that ends the layer's attention, where it adds to the stream as it is and no router reads what it adds;
    else None."""
    family, module = decoder.family, decoder.layers[layer]
    path = family.writers[0]
    routed = any("experts." in name for name, _ in module.named_parameters())
    if family.mlp_norm is not None or routed or not has(module, f"{path}.weight"):
        return None
    return Writer(path, multiplier(decoder))


def multiplier(decoder: Decoder) -> float:
    field = decoder.family.residual_multiplier
    return 1.0 if field is None else float(getattr(decoder.config, field))


def has(module: nn.Module, path: str) -> bool:
    """Whether a module has one, or a parameter, at ``path``."""
    owner, _, leaf = path.rpartition(".")
    try:
        return getattr(module.get_submodule(owner), leaf, None) is not None
    except AttributeError:
        return False


def standing(decoder: Decoder, stack: LayerStack, layer: int, name: str) -> torch.Tensor:
    """A parameter of a layer as it stands in ``stack``, float64 on the CPU."""
    overlay = stack.overlays.get(layer)
    if overlay is not None and name in overlay.tensors:
        return overlay.tensors[name].double()
    return decoder.stored(f"{decoder.family.layers}.{layer}.{name}").double()


def overlaid(stack: LayerStack, layer: int, tensors: dict[str, torch.Tensor]) -> LayerStack:
    """The stack with some of a survivor's tensors put in, rounded to float32; an export rounds to what it stores."""
    before = stack.overlays.get(layer)
    kept = {} if before is None else dict(before.tensors)
    return stack.with_overlay(layer, Overlay({**kept, **{name: tensor.float() for name, tensor in tensors.items()}}))


def changed(decoder: Decoder, stack: LayerStack, layer: int, writer: Writer, change: torch.Tensor) -> LayerStack:
    """The stack with ``h D``, D [k, d], added to what the writer gives for its features h."""
    name = f"{writer.path}.weight"
    change = change.cpu()
    turned = change if writer.transposed(decoder.layers[layer]) else change.T
    return overlaid(stack, layer, {name: standing(decoder, stack, layer, name) + turned})
