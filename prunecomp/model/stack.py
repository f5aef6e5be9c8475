"""A pruned model as data: the layers that survive, and the scale of the stream entering each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, takewhile
from math import prod
from operator import mul

import torch

from prunecomp.errors import OptionError


@dataclass(frozen=True, eq=False)
class Overlay:
    """Weights that stand in for some of one layer's own, by their names within the layer.

    Float32 or float64 on the CPU, as an export folds them; the layer's own tensors stay as they are.
    """

    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    _ready: dict[tuple[torch.device, torch.dtype], dict[str, torch.Tensor]] = field(default_factory=dict, repr=False)

    def on(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The same, to compute with; made once."""
        if (device, dtype) not in self._ready:
            self._ready[device, dtype] = {name: tensor.to(device, dtype) for name, tensor in self.tensors.items()}
        return self._ready[device, dtype]


@dataclass(frozen=True)
class LayerStack:
    """Surviving layers with their seams, over weights that are never touched.

    ``alive`` holds original layer indices in order. ``seams[p]`` multiplies the residual stream on its way into
    ``alive[p]``. A seam above the last survivor is dropped: the final norm absorbs it.
    """

    num_layers: int
    alive: tuple[int, ...]
    seams: tuple[float, ...]
    overlays: Mapping[int, Overlay] = field(default_factory=dict)
    """By original layer, for those whose weights a compensation or a repair has replaced; under ``num_layers`` those of
    the final norm and the head, by their names in the model."""

    @classmethod
    def dense(cls, num_layers: int) -> LayerStack:
        return cls(num_layers, tuple(range(num_layers)), (1.0,) * num_layers)

    @property
    def removed(self) -> tuple[int, ...]:
        return tuple(sorted(set(range(self.num_layers)) - set(self.alive)))

    def position(self, layer: int) -> int:
        """Where an original layer stands among the survivors; raises :class:`OptionError` if it is gone."""
        try:
            return self.alive.index(layer)
        except ValueError:
            raise OptionError(f"layer {layer} is not among the surviving layers {list(self.alive)}") from None

    def neighbours(self, layers: Sequence[int]) -> tuple[int, ...]:
        """``layers`` from below, if they can be removed at once; raises :class:`OptionError` where one is gone, where
        they are no neighbours, and where none would be left."""
        missing = sorted(set(layers) - set(self.alive))
        if not layers or missing:
            named = f"layers {missing} are not there" if missing else "no layer was named"
            raise OptionError(f"{named}; the surviving layers are {list(self.alive)}")
        block = tuple(layer for layer in self.alive if layer in layers)
        if len(block) == len(self.alive):
            raise OptionError(f"{list(block)} are all the layers that are left; at least one must stay")
        p = self.alive.index(block[0])
        if block != self.alive[p : p + len(block)]:
            raise OptionError(f"{list(block)} are not neighbours among {list(self.alive)}: remove them one by one")
        return block

    def remove(self, layer: int, scale: float = 1.0) -> LayerStack:
        """The stack without ``layer``, its place taken by a seam of ``scale``.

        Seams that meet multiply: the stream below the layer now runs through the layer's own seam, the new one and
        the one above it.
        """
        p = self.position(layer)
        seams = list(self.seams)
        merged = seams.pop(p) * scale
        if p < len(seams):
            seams[p] *= merged
        overlays = {index: overlay for index, overlay in self.overlays.items() if index != layer}
        return LayerStack(self.num_layers, self.alive[:p] + self.alive[p + 1 :], tuple(seams), overlays)

    def remove_block(self, block: Sequence[int], scale: float = 1.0) -> LayerStack:
        """The stack without neighbouring survivors, one seam of ``scale`` in their place."""
        stack = self
        for number, layer in enumerate(block):
            stack = stack.remove(layer, scale if number == 0 else 1.0)
        return stack

    def with_overlay(self, layer: int, overlay: Overlay) -> LayerStack:
        """The stack with a survivor's weights replaced."""
        self.position(layer)
        return replace(self, overlays={**self.overlays, layer: overlay})

    def common_prefix(self, other: LayerStack) -> int:
        """How many survivors from below are the same layers behind the same seams with the same weights: what enters
        the survivor above them is the same, before its seam."""
        mine, theirs = (
            [(layer, seam, stack.overlays.get(layer)) for layer, seam in zip(stack.alive, stack.seams, strict=True)]
            for stack in (self, other)
        )
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mine, theirs, strict=False)))

    def below(self, position: int) -> LayerStack:
        """The first ``position`` survivors alone."""
        return replace(self, alive=self.alive[:position], seams=self.seams[:position])

    def seam_product_below(self) -> tuple[float, ...]:
        """For each survivor the product of all seams from the bottom up to and including its own."""
        return tuple(accumulate(self.seams, mul))

    def seam_product_above(self) -> tuple[float, ...]:
        """For each survivor the product of all seams strictly above it."""
        return tuple(accumulate(self.seams[:0:-1], mul, initial=1.0))[::-1]

    def seam_product(self) -> float:
        return prod(self.seams, start=1.0)
