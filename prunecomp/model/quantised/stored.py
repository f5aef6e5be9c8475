"""Quantised weights as files hold them, integers or small floats and the scales that multiply them; and a checkpoint of
them seen as an ordinary one, under plain names and with the numbers that are meant."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prunecomp.errors import CheckpointError
from prunecomp.model.weights import StoredTensors

Settings = Mapping[str, Any]
"""The ``quantization_config`` of a checkpoint."""

CHUNK = 2**24
"""Numbers worked on at a time: a weight is unpacked in pieces, so that reading it takes little more than its result."""

NARROW = {torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu}
"""Floats that are only read with a scale, or are one: nothing can be rounded to them without loss."""


@dataclass(frozen=True)
class StoredWeight(ABC):
    """Where one weight is, and how it is read.

    ``parts`` are all tensors that it is made of, ``scales`` those that it is linear in: multiplying all of these by a
    number multiplies the weight by it. ``fixed`` says why that cannot be done, if so. ``input_scale`` is the stored
    scale of the input where activations are quantised with one that was measured.
    """

    parts: tuple[str, ...]
    scales: tuple[str, ...]
    fixed: str | None = field(default=None, kw_only=True)
    input_scale: str | None = field(default=None, kw_only=True)

    def shape(self, files: StoredTensors) -> tuple[int, ...]:
        """The weight's shape, as the model has it: that of its numbers, where they are not packed."""
        return files.shape(self.parts[0])

    @abstractmethod
    def read(self, files: StoredTensors) -> torch.Tensor:
        """The weight that is meant, float32, in the model's shape."""


class Dequantised:
    """The tensors of ``files`` by the model's names, the quantised ``weights`` dequantised when they are read.

    In float32, whatever the model computes in: the product of a scale and a small number is exact there, or rounded
    once, and is rounded to the compute dtype as that of transformers with ``dequantize=True`` is. Only weights are
    quantised here: activations that a server would round to eight bits are not rounded.
    """

    def __init__(self, files: StoredTensors, method: str, weights: Mapping[str, StoredWeight]) -> None:
        self.folder: Path = files.folder
        self.method = method
        self.weights = weights
        self._files = files
        self._hidden = {part for weight in weights.values() for part in weight.parts}

    def names(self) -> list[str]:
        return [name for name in self._files.names() if name not in self._hidden] + list(self.weights)

    def location(self, name: str) -> Path:
        return self._files.location(self.weights[name].parts[0] if name in self.weights else name)

    def read(self, name: str) -> torch.Tensor:
        """See :class:`TensorSource`; what is not quantised comes in the dtype it is stored in."""
        return self.weights[name].read(self._files) if name in self.weights else self._files.read(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.weights[name].shape(self._files) if name in self.weights else self._files.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name in self.weights else self._files.dtype(name)

    def is_floating_point(self, name: str) -> bool:
        return name in self.weights or self._files.is_floating_point(name)

    def nbytes(self, name: str) -> int:
        """Of the tensor as it is read."""
        return torch.Size(self.shape(name)).numel() * self.dtype(name).itemsize


def unpack(words: torch.Tensor, shifts: Sequence[int]) -> torch.Tensor:
    """The numbers in int32 ``words`` [.., n], as many a word as there are ``shifts``, which are in bits and give their
    order: uint8 [.., n * len(shifts)]."""
    mask = (1 << 32 // len(shifts)) - 1
    return ((words.unsqueeze(-1) >> torch.tensor(shifts, dtype=torch.int32)) & mask).to(torch.uint8).flatten(-2)


def in_order(bits: int) -> range:
    """The shifts of numbers that lie in a word from its lowest bits up."""
    return range(0, 32, bits)


def pieces(rows: int, columns: int, step: int = 1) -> list[slice]:
    """Slices of ``rows`` of about :data:`CHUNK` numbers, each but the last a multiple of ``step`` long."""
    size = max(1, CHUNK // max(1, columns) // step) * step
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def spread(scale: torch.Tensor, block: tuple[int, int], rows: slice, columns: int) -> torch.Tensor:
    """``scale`` [R, C] or [E, R, C], one a ``block``, over some rows of the weight: [rows or 1, columns or 1]. Where
    ``scale`` has a single row or column it stays so, to be broadcast."""
    if scale.shape[-2] > 1:
        scale = scale[..., torch.arange(rows.start, rows.stop) // block[0], :]
    if scale.shape[-1] > 1:
        scale = scale[..., torch.arange(columns) // block[1]]
    return scale


def check_blocks(
    files: StoredTensors, name: str, scale: Sequence[int], shape: Sequence[int], block: tuple[int, int]
) -> None:
    """Raise :class:`CheckpointError` unless a ``scale`` of this shape has one entry a ``block`` of a weight's
    ``shape``, ragged ones at the end included."""
    wanted = [math.ceil(extent / size) for extent, size in zip(shape[-2:], block, strict=True)]
    if list(scale[-2:]) != wanted or list(scale[:-2]) != list(shape[:-2]):
        raise CheckpointError(
            f"{files.location(name)}: {name} is {list(scale)}; a weight of {list(shape)} in blocks of {list(block)} "
            f"has {[*shape[:-2], *wanted]} scales"
        )


def check_there(files: StoredTensors, parts: Sequence[str], names: Collection[str]) -> None:
    """Raise :class:`CheckpointError` unless all ``parts`` of a weight, its first one aside, are among the ``names``."""
    for part in parts:
        if part not in names:
            raise CheckpointError(f"{files.location(parts[0])}: {parts[0]} is there, and {part} is not")


def check_dtype(files: StoredTensors, name: str, allowed: set[torch.dtype]) -> None:
    if files.dtype(name) not in allowed:
        known = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in allowed))
        raise CheckpointError(
            f"{files.location(name)}: {name} is stored in {str(files.dtype(name)).removeprefix('torch.')}, the "
            f"quantization_config asks for {known}"
        )


def no_scale_to_fold(files: StoredTensors, scales: Sequence[str]) -> str | None:
    """Why no factor can be put into ``scales``, or None where it can."""
    for name in scales:
        if files.dtype(name) in NARROW or not files.dtype(name).is_floating_point:
            return f"its scale {name} is stored in {files.dtype(name)}, which holds powers of two or less"
    return None
