"""The loop nest: groups of layers outside, micro-batches inside them, layers inside those; sinks ride on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from prunecomp.data.windows import Batch, Windows
from prunecomp.engine.placement import Placement
from prunecomp.engine.progress import Advance
from prunecomp.engine.sinks import LayerSink
from prunecomp.engine.states import CARRY, StateShape, StateStore
from prunecomp.model.decoder import Decoder, apply_seam
from prunecomp.model.stack import LayerStack, Overlay

Finish = Callable[[Batch, torch.Tensor], None]
"""``finish(batch, stream)`` sees what leaves the last layer, [B, S, d], one micro-batch at a time."""


@dataclass
class Tally:
    """What was run on whose account."""

    window_forwards: int = 0
    """Passes of one window through one layer."""


class Sweeper:
    """Runs stretches of a pruned model over windows and counts what it ran."""

    def __init__(self, decoder: Decoder, windows: Windows, placement: Placement) -> None:
        self.decoder = decoder
        self.windows = windows
        self.placement = placement
        self.batches = windows.batches(placement.micro_batch, decoder.packs, decoder.rotary.kind)
        self.tally = Tally()

    def count(self, window_forwards: int) -> None:
        """Add what was run: passes of one window through one layer."""
        self.tally.window_forwards += window_forwards

    @property
    def state_shape(self) -> StateShape:
        """Of the stream at one boundary."""
        rows = sum(batch.tokens.numel() for batch in self.batches)
        return StateShape(rows, self.decoder.hidden_size, self.decoder.dtype)

    def sweep(
        self,
        stack: LayerStack,
        start: int,
        states: StateStore,
        sinks: Sequence[LayerSink] = (),
        advance: Advance | None = None,
        finish: Finish | None = None,
    ) -> None:
        """Run the survivors from position ``start`` up over all windows.

        Position 0 starts from the embedding, any other from the state kept there. States that the store wants are kept
        on the way. Head and final norm are never run.
        """
        layers = stack.alive[start:]
        if not layers:
            return  # the cut was at the top: nothing above it is left to run
        seams = dict(zip(stack.alive, stack.seams, strict=True))
        groups = self.placement.groups(layers)
        entry = stack.alive[start] if start > 0 else None  # where the first group's states come from
        for group, above in zip(self.decoder.weights.walk(groups), [*groups[1:], None], strict=True):
            leaves_at = None if above is None else (above[0] if states.wants(above[0]) else CARRY)
            for batch in self.batches:
                stream = self.decoder.enter(batch)[0] if entry is None else states.get(entry, batch)
                stream = self._run(group, seams, stack.overlays, batch, stream, states, sinks)
                if leaves_at is not None:
                    states.put(leaves_at, batch, stream)
                elif finish is not None:
                    finish(batch, stream)
                for sink in sinks:
                    sink.drain()
                self.count(batch.count * len(group))
                if advance is not None:
                    advance(batch.count * len(group))
            entry = leaves_at
        states.drop(CARRY)
        for sink in sinks:
            sink.finish()

    def _run(
        self,
        group: Sequence[int],
        seams: dict[int, float],
        overlays: Mapping[int, Overlay],
        batch: Batch,
        stream: torch.Tensor,
        states: StateStore,
        sinks: Sequence[LayerSink],
    ) -> torch.Tensor:
        arguments = self.decoder.arguments(batch)
        for layer, following in zip(group, [*group[1:], None], strict=True):
            x = apply_seam(stream, seams[layer])
            y = self.decoder.call(layer, x, arguments, overlays.get(layer))
            for sink in sinks:
                sink.update(layer, batch, x, y)
            stream = y
            if following is not None and states.wants(following):
                states.put(following, batch, y)
        return stream
