"""Every span of the model at once: the Gram matrix of all states of a token, from one read of each state."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunecomp.data.windows import Batch
from prunecomp.engine.parallel import Workers
from prunecomp.engine.placement import Demand, ModelShape
from prunecomp.engine.states import StateStore
from prunecomp.engine.statistics import Gram
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.ops import LayerGram, layer_gram

CHANNELS = 256
"""How many channels are laid out at once for cosines along tokens."""

LEAST_NORM = 1e-8
"""A shorter vector counts as one of this length, as in :func:`torch.cosine_similarity`: a zero vector has cosine 0."""


class GramTaker:
    """Sees micro-batches leave the last layer, when all states below are kept, and takes their Gram matrices.

    ``along_tokens`` asks for :attr:`Gram.along_tokens` too.
    """

    def __init__(
        self,
        decoder: Decoder,
        stack: LayerStack,
        states: StateStore,
        workers: Workers,
        backend: str | None,
        *,
        along_tokens: bool = False,
    ) -> None:
        self._decoder, self._alive, self._states = decoder, stack.alive, states
        self._workers, self._backend = workers, backend
        self._along_tokens = along_tokens
        m = len(stack.alive) + 1
        self._sums = torch.zeros(workers.share, 4 if along_tokens else 3, m, m, dtype=torch.float64)

    def finish(self, batch: Batch, stream: torch.Tensor) -> None:
        """``stream`` is what leaves the last layer, [B, S, d]."""
        kept = (self._states.get(layer, batch) for layer in self._alive[1:])
        states = [self._decoder.enter(batch)[0], *kept, stream]
        gram = self._gram(batch, states)
        sums = [gram.cosine, gram.angular, gram.dot]
        if self._along_tokens:
            sums.append(along_tokens(batch, states))
        self._sums[batch.rows] = torch.stack(sums, dim=1).cpu()

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


def along_tokens(batch: Batch, states: Sequence[torch.Tensor]) -> torch.Tensor:
    """For every pair of M states [B, S, d] the cosine, channel by channel, of the two sequences of values that a
    channel takes over a window's tokens, averaged over channels: [B, M, M] float64.

    This is no measure of how far a token is turned. It is what ``torch.cosine_similarity`` gives over its default
    dimension 1, and what the official code (its CosSim_CL) ranks blocks by. Products are summed in float32 or better.
    """
    d = states[0].shape[-1]
    if batch.packed:
        each = [[one[0] for one in sequence] for sequence in zip(*map(batch.sequences, states), strict=True)]
    else:
        each = [[state[n, :length] for state in states] for n, length in enumerate(batch.each_length)]
    means = []
    for sequence in each:
        added = torch.zeros(len(states), len(states), dtype=torch.float64, device=states[0].device)
        for first in range(0, d, CHANNELS):
            values = torch.stack([one[:, first : first + CHANNELS].T for one in sequence], dim=1)  # [c, M, S]
            values = values.to(torch.promote_types(values.dtype, torch.float32))
            norms = torch.linalg.vector_norm(values, dim=-1).clamp(min=LEAST_NORM)  # [c, M]
            cosines = (values @ values.mT) / (norms.unsqueeze(-1) * norms.unsqueeze(-2))  # [c, M, M]
            added += cosines.sum(dim=0, dtype=torch.float64)
        means.append(added / d)
    return torch.stack(means)


def gram_demand(shape: ModelShape) -> Demand:
    """What taking Gram matrices holds beside a forward pass: all states of a micro-batch, wherever they come from."""
    token = (shape.num_layers + 1) * shape.hidden_size * shape.itemsize
    return Demand(lambda num_tokens: num_tokens * token)
