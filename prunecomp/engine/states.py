"""The residual stream at layer boundaries, kept between rounds."""

from __future__ import annotations

import torch

from prunecomp.engine.placement import state_device


class StateCache:
    """Streams by the original layer they enter, one tensor a micro-batch.

    A state is stored as its writer left it, *before* the seam that follows it: the seam is applied on read. Stored
    after it, a state would carry a scale that later removals must not see.
    """

    def __init__(self, num_chunks: int, device: torch.device) -> None:
        self._num_chunks = num_chunks
        self._device = device
        self._states: dict[int, list[torch.Tensor | None]] = {}

    @classmethod
    def for_run(cls, num_chunks: int, nbytes: int, compute_device: torch.device) -> StateCache:
        """A cache on the compute device where ``nbytes`` fit there with room to spare, else in host memory."""
        return cls(num_chunks, state_device(nbytes, compute_device))

    def keep(self, layer: int, chunk: int, stream: torch.Tensor) -> None:
        self._states.setdefault(layer, [None] * self._num_chunks)[chunk] = stream.to(self._device)

    def load(self, layer: int, chunk: int, device: torch.device) -> torch.Tensor:
        stream = self._states[layer][chunk]
        if stream is None:
            raise KeyError(f"the state entering layer {layer} was not kept for micro-batch {chunk}")
        return stream.to(device)

    def move(self, layer: int, successor: int | None) -> None:
        """After ``layer`` is removed, what entered it enters ``successor``: bit for bit the same tensors."""
        states = self._states.pop(layer)
        if successor is not None:
            self._states[successor] = states

    @property
    def nbytes(self) -> int:
        return sum(s.nbytes for states in self._states.values() for s in states if s is not None)
