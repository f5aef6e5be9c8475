"""The dense model's stream and a pruned model's over the same windows, each carried upward as far as it is wanted."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunecomp.data.windows import Batch, Windows
from prunecomp.engine.placement import Placement, memory_advice, workers_of
from prunecomp.engine.progress import Advance
from prunecomp.engine.states import StateStore, Tier, set_apart
from prunecomp.engine.sweep import Finish, Sweeper
from prunecomp.errors import OptionError
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack

BOUNDARIES = 4
"""Boundaries of all windows that two streams hold at once: each where it stands, and where it is carried to."""


def check_boundaries(placement: Placement, device: torch.device) -> None:
    """Raise :class:`OptionError` where two streams have no room side by side."""
    if placement.kept_boundaries < BOUNDARIES:
        raise OptionError(
            f"--repair needs room for {BOUNDARIES} boundaries of all windows at once, and memory is left for "
            f"{placement.kept_boundaries}: {memory_advice(placement.disk_folder, device)}; or use --repair none"
        )


class Stream:
    """One model's stream at one boundary, where it enters the survivor at position ``at``; 0 is the embedding."""

    def __init__(self, sweeper: Sweeper, stack: LayerStack, capacity: Mapping[Tier, int]) -> None:
        placement = sweeper.placement
        self.stack = stack
        self.at = 0
        self._sweeper = sweeper
        self._states = StateStore(
            sweeper.state_shape, sweeper.decoder.device, capacity, carry=placement.carry, disk=placement.disk_folder
        )

    def get(self, batch: Batch) -> torch.Tensor:
        """A micro-batch of it before the seam that follows, [B, S, d]; not to be written to."""
        return self._sweeper.decoder.enter(batch)[0] if self.at == 0 else self._states.get(self._key(self.at), batch)

    def carry(self, position: int, advance: Advance) -> None:
        """Run it up to where it enters the survivor at ``position``, or, past the last one, leaves the model."""
        if position == self.at:
            return
        key = self._key(position)
        self._states.retain([*self._states.kept, key])
        self.look(position, lambda batch, stream: self._states.put(key, batch, stream), advance)
        self._states.retain([key])
        self.at = position

    def look(self, position: int, finish: Finish, advance: Advance) -> None:
        """Run it as far, show what arrives to ``finish``, and stay."""
        self._sweeper.sweep(self.stack.below(position), self.at, self._states, advance=advance, finish=finish)

    def join(self, other: Stream) -> None:
        """Stand where ``other`` stands, which has come there through the same layers."""
        if other.at > 0:
            self._states.retain([self._key(other.at)])
            for batch in self._sweeper.batches:
                self._states.put(self._key(other.at), batch, other.get(batch))
        self.at = other.at

    def _key(self, position: int) -> int:
        alive = self.stack.alive
        return alive[position] if position < len(alive) else self.stack.num_layers


class Streams:
    """Both, over this process's share of the windows."""

    def __init__(self, decoder: Decoder, windows: Windows, placement: Placement, pruned: LayerStack) -> None:
        check_boundaries(placement, decoder.device)
        workers = workers_of(windows.count, windows.seqlen, decoder.device)
        self.sweeper = Sweeper(decoder, windows.take(workers.rows), placement)
        first, others = set_apart(placement.capacity, BOUNDARIES // 2)
        self.dense = Stream(self.sweeper, LayerStack.dense(decoder.num_layers), first)
        self.pruned = Stream(self.sweeper, pruned, set_apart(others, BOUNDARIES // 2)[0])
