"""Every span of the model at once: the Gram matrix of all states of a token, from one read of each state."""

from __future__ import annotations

import torch

from prunecomp.data.windows import Batch
from prunecomp.engine.parallel import Workers
from prunecomp.engine.states import StateStore
from prunecomp.engine.statistics import Gram
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.ops import LayerGram, layer_gram


class GramTaker:
    """Sees micro-batches leave the last layer, when all states below are kept, and takes their Gram matrices."""

    def __init__(
        self, decoder: Decoder, stack: LayerStack, states: StateStore, workers: Workers, backend: str | None
    ) -> None:
        self._decoder, self._alive, self._states = decoder, stack.alive, states
        self._workers, self._backend = workers, backend
        m = len(stack.alive) + 1
        self._sums = torch.zeros(workers.share, 3, m, m, dtype=torch.float64)

    def finish(self, batch: Batch, stream: torch.Tensor) -> None:
        """``stream`` is what leaves the last layer, [B, S, d]."""
        kept = (self._states.get(layer, batch) for layer in self._alive[1:])
        states = [self._decoder.enter(batch)[0], *kept, stream]
        gram = self._gram(batch, states)
        self._sums[batch.rows] = torch.stack([gram.cosine, gram.angular, gram.dot], dim=1).cpu()

    def _gram(self, batch: Batch, states: list[torch.Tensor]) -> LayerGram:
        if not batch.packed:
            return layer_gram(states, batch.lengths, backend=self._backend)
        each = [
            layer_gram(list(sequence), backend=self._backend)
            for sequence in zip(*(batch.sequences(state) for state in states), strict=True)
        ]
        return LayerGram(*(torch.cat(parts) for parts in zip(*each, strict=True)))

    def result(self) -> Gram:
        """Of all processes' sequences."""
        return Gram(*self._workers.gather(self._sums).unbind(dim=1))
