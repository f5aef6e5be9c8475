"""A quantised checkpoint seen as an ordinary one: plain names, and the numbers that are meant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from prunecomp.model.quantised.stored import StoredWeight
from prunecomp.model.weights import StoredTensors


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
