"""Every span of the model at once: the Gram matrix of all states of a token, from one read of each state."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunecomp.data.windows import Batch
from prunecomp.engine.placement import Demand, ModelShape
from prunecomp.engine.states import StateStore
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.ops import layer_gram

CHANNELS = 256
"""How many channels are laid out at once for cosines along tokens."""

LEAST_NORM = 1e-8
"""A shorter vector counts as one of this length, as in :func:`torch.cosine_similarity`: a zero vector has cosine 0."""


def gram_sums(
    decoder: Decoder,
    stack: LayerStack,
    states: StateStore,
    batch: Batch,
    stream: torch.Tensor,
    *,
    with_along_tokens: bool = False,
    backend: str | None = None,
) -> torch.Tensor:
    """Sums over the tokens of each of a micro-batch's B sequences, for all pairs of the M = survivors + 1 boundaries:
    [B, 3, M, M] float64, of the cosine, of its acos over pi, and of the inner product.

    ``stream`` is what leaves the last layer, [B, S, d]; all states below are kept. ``with_along_tokens`` asks for a
    fourth: no sum over tokens, but what :func:`along_tokens` gives.
    """
    states_of_batch = [decoder.enter(batch)[0], *(states.get(layer, batch) for layer in stack.alive[1:]), stream]
    if batch.packed:
        each = zip(*(batch.sequences(state) for state in states_of_batch), strict=True)
        grams = [layer_gram(list(sequence), backend=backend) for sequence in each]
    else:
        grams = [layer_gram(states_of_batch, batch.lengths_on(stream.device), backend=backend)]
    sums = torch.cat([torch.stack([gram.cosine, gram.angular, gram.dot], dim=1) for gram in grams])
    if with_along_tokens:
        sums = torch.cat([sums, along_tokens(batch, states_of_batch).unsqueeze(1)], dim=1)
    return sums.cpu()


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
