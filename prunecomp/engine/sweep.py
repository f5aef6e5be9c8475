"""The loop nest: micro-batches outside, layers inside, sinks and kept states on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunecomp.data.windows import Windows
from prunecomp.engine.progress import Advance
from prunecomp.engine.sinks import Sink
from prunecomp.engine.states import StateCache
from prunecomp.model.decoder import Decoder, LayerArguments, apply_seam
from prunecomp.model.stack import LayerStack


class Sweeper:
    """Runs stretches of a pruned model over calibration windows and counts what it ran."""

    def __init__(self, decoder: Decoder, windows: Windows, batch: int) -> None:
        self.decoder = decoder
        self.windows = windows
        self.batch = batch
        self.num_chunks = -(-windows.count // batch)
        self._window_forwards = 0

    @property
    def layer_forwards(self) -> int:
        """Passes of all windows through one layer, so far."""
        return self._window_forwards // self.windows.count

    def sweep(
        self,
        stack: LayerStack,
        start: int,
        states: StateCache,
        sinks: Sequence[Sink],
        advance: Advance | None = None,
        keep: bool = True,
    ) -> None:
        """Run the survivors from position ``start`` up over all windows.

        Position 0 starts from the embedding, any other from the state kept there; states on the way are kept unless
        ``keep`` is off. Head and final norm are never run.
        """
        if start == len(stack.alive):
            return  # the cut was at the top: nothing above it is left to run
        first_row = 0
        for chunk, tokens in enumerate(self.windows.chunks(self.batch)):
            rows = slice(first_row, first_row + len(tokens))
            first_row = rows.stop
            stream, arguments = self._enter(stack, start, states, chunk, tokens, keep)
            for p in range(start, len(stack.alive)):
                layer = stack.alive[p]
                x = apply_seam(stream, stack.seams[p])
                y = self.decoder.call(layer, x, arguments)
                for sink in sinks:
                    sink.update(layer, rows, x, y)
                if keep and p + 1 < len(stack.alive):
                    states.keep(stack.alive[p + 1], chunk, y)
                stream = y
                self._window_forwards += len(tokens)
                if advance is not None:
                    advance(len(tokens))

    def _enter(
        self, stack: LayerStack, start: int, states: StateCache, chunk: int, tokens: torch.Tensor, keep: bool
    ) -> tuple[torch.Tensor, LayerArguments]:
        embedded, arguments = self.decoder.enter(tokens)
        if start > 0:
            return states.load(stack.alive[start], chunk, self.decoder.device), arguments
        if keep:
            states.keep(stack.alive[0], chunk, embedded)
        return embedded, arguments
