"""Weights of the decoder layers: all in place, or arriving a group at a time while the group before computes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from prunecomp.errors import NumericalError
from prunecomp.model.checks import parameter_places
from prunecomp.model.weights import StoredTensors, all_finite

ALIGNMENT = 256
"""Bytes to which every parameter in a slot is aligned, as a device allocator would."""

Group = Sequence[int]
"""Original indices of layers whose weights are on the device together."""


class LayerWeights(Protocol):
    """Who sees to it that a layer's weights are on the device when it is called."""

    def walk(self, groups: Sequence[Group]) -> Generator[Group]:
        """Yield the groups in order, each callable until the next one is asked for. Close the generator when done."""
        ...


class ResidentWeights:
    """Every layer is where it belongs, always."""

    def walk(self, groups: Sequence[Group]) -> Generator[Group]:
        yield from groups


@dataclass(frozen=True)
class _Place:
    """Where one parameter of a layer lives in a slot."""

    module: nn.Module
    leaf: str
    name: str
    shape: torch.Size
    offset: int  # bytes, from the start of its layer
    empty: nn.Parameter


class _Slot:
    """Memory for one group: a flat buffer on the device and, behind a GPU, its pinned twin on the host."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=on_gpu)
        self.device = torch.empty(nbytes, dtype=torch.uint8, device=device) if on_gpu else self.host
        self.arrived: Any = None  # event on the copy stream: the weights are there
        self.released: Any = None  # event on the compute stream: the last layer that reads them has run


class StreamedWeights:
    """Two slots: while one group computes, a worker thread reads the next from the memory-mapped files, converts it to
    the compute dtype in pinned memory and sends it to the device on a stream of its own.

    Layers are built on the meta device and hold views of a slot while their group is current. Each layer's weights
    are checked for values that are not finite the first time they arrive.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        prefixes: Sequence[str],
        source: StoredTensors,
        dtype: torch.dtype,
        device: torch.device,
        group_size: int,
    ) -> None:
        self._source, self._dtype, self._device = source, dtype, device
        self._places = [list(_places(layer, prefix, dtype)) for layer, prefix in zip(layers, prefixes, strict=True)]
        self._layer_nbytes = max(slot_nbytes(layer, dtype) for layer in layers)
        self._slots = [_Slot(self._layer_nbytes * group_size, device) for _ in range(2)]
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._checked: set[int] = set()

    def walk(self, groups: Sequence[Group]) -> Generator[Group]:
        """See :class:`LayerWeights`. Raises :class:`NumericalError` for a weight that is not finite."""
        if not groups:
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prunecomp-weights") as worker:
            arriving: Future[None] = worker.submit(self._fetch, groups[0], self._slots[0])
            for number, group in enumerate(groups):
                slot = self._slots[number % 2]
                arriving.result()
                if number + 1 < len(groups):
                    arriving = worker.submit(self._fetch, groups[number + 1], self._slots[(number + 1) % 2])
                self._attach(group, slot)
                try:
                    yield group
                finally:
                    self._detach(group, slot)

    def _fetch(self, group: Group, slot: _Slot) -> None:
        """Runs in the worker. The slot's last readers were queued before its group was let go."""
        for position, layer in enumerate(group):
            for place in self._places[layer]:
                stored = self._source.read(place.name)
                if layer not in self._checked and not all_finite(stored):
                    raise NumericalError(
                        f"{self._source.location(place.name)}: {place.name} holds NaN or infinite weights"
                    )
                self._view(slot.host, place, position).copy_(stored)
            self._checked.add(layer)
        if self._copies is not None:
            if slot.released is not None:
                self._copies.wait_event(slot.released)
            with torch.cuda.device(self._device), torch.cuda.stream(self._copies):
                slot.device.copy_(slot.host, non_blocking=True)
                slot.arrived = self._copies.record_event()
            slot.arrived.synchronize()  # the pinned twin may be filled again from here on

    def _attach(self, group: Group, slot: _Slot) -> None:
        if slot.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.arrived)
        for position, layer in enumerate(group):
            for place in self._places[layer]:
                view = self._view(slot.device, place, position)
                place.module._parameters[place.leaf] = nn.Parameter(view, requires_grad=False)

    def _detach(self, group: Group, slot: _Slot) -> None:
        for layer in group:
            for place in self._places[layer]:
                place.module._parameters[place.leaf] = place.empty
        if self._copies is not None:
            slot.released = torch.cuda.current_stream(self._device).record_event()

    def _view(self, buffer: torch.Tensor, place: _Place, position: int) -> torch.Tensor:
        start = position * self._layer_nbytes + place.offset
        nbytes = place.shape.numel() * self._dtype.itemsize
        return buffer[start : start + nbytes].view(self._dtype).view(place.shape)


def slot_nbytes(layer: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of a layer's parameters in ``dtype``, each aligned."""
    return sum(_aligned(p.numel() * dtype.itemsize) for p in layer.parameters())


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _places(layer: nn.Module, prefix: str, dtype: torch.dtype) -> Iterator[_Place]:
    offset = 0
    for name, module, leaf in parameter_places(layer):
        parameter = module._parameters[leaf]
        yield _Place(module, leaf, f"{prefix}.{name}", parameter.shape, offset, parameter)
        offset += _aligned(parameter.numel() * dtype.itemsize)
