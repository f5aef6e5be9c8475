"""Next-token losses from what leaves the last layer, without ever holding the logits of many tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from prunecomp.data.windows import Batch
from prunecomp.model.decoder import Decoder
from prunecomp.model.weights import all_finite

LOGITS = 2**26
"""Logits in memory at once: 256 MB in float32."""


TILE = 128
"""Rows that a matrix product takes together on a GPU."""


Look = Callable[..., torch.Tensor]
"""``look(rows, wanted, *others)``: numbers of each of R rows [R, d] that predict the tokens ``wanted`` [R], float32
[R, ...]; ``others`` are the same rows of other streams."""


def batch_losses(decoder: Decoder, batch: Batch, stream: torch.Tensor) -> torch.Tensor:
    """:func:`token_sums` of the losses, [B], from what leaves the last layer."""

    def losses(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(decoder.logits(rows).float(), wanted, reduction="none")

    return token_sums(decoder, batch, losses, stream)


def token_sums(decoder: Decoder, batch: Batch, look: Look, stream: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """What ``look`` gives of the tokens that each of a micro-batch's B sequences predicts, all but its first, summed:
    [B, ...] float64 on the CPU.

    ``stream`` and the ``others`` are [B, S, d], or [1, T, d] packed; rows of about as many tokens as
    :func:`rows_at_once` says are looked at together. NaN for a sequence with a value in ``stream`` that is not finite,
    be it where nothing is predicted.
    """
    if not batch.packed:
        return _window_sums(decoder, look, batch.tokens, batch.lengths, stream, *others).cpu()
    each = zip(*map(batch.sequences, (batch.tokens, stream, *others)), strict=True)
    return torch.cat([_window_sums(decoder, look, tokens, None, *streams) for tokens, *streams in each]).cpu()


def _window_sums(
    decoder: Decoder, look: Look, tokens: torch.Tensor, lengths: torch.Tensor | None, *streams: torch.Tensor
) -> torch.Tensor:
    targets = tokens[:, 1:].to(streams[0].device)
    rows = [targets.flatten(), *(stream[:, :-1].flatten(0, 1) for stream in streams)]
    some = zip(*(each.split(rows_at_once(decoder)) for each in rows), strict=True)
    seen = torch.cat([look(mine, wanted, *others) for wanted, mine, *others in some])
    seen = seen.view(*targets.shape, *seen.shape[1:])
    if lengths is not None:
        real = torch.arange(1, tokens.shape[1]) < lengths.unsqueeze(1)
        seen = torch.where(_over(real.to(seen.device), seen), seen, 0.0)
    sums = seen.sum(dim=1, dtype=torch.float64)
    return torch.where(_over(finite(streams[0], lengths), sums), sums, torch.nan)


def _over(flags: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``flags`` of the first axes of ``values``, to be broadcast over the others."""
    return flags.view(*flags.shape, *[1] * (values.ndim - flags.ndim))


def finite(stream: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Whether all values of each sequence are finite, padding apart: [B] bool."""
    if stream.device.type == "cpu" and all_finite(stream):  # one read; which sequence is asked only where there is one
        return torch.ones(len(stream), dtype=torch.bool)
    tokens = stream.isfinite().all(dim=2)
    if lengths is not None:
        tokens |= (torch.arange(stream.shape[1]) >= lengths.unsqueeze(1)).to(tokens.device)
    return tokens.all(dim=1)


def rows_at_once(decoder: Decoder) -> int:
    """Of how many tokens there are logits in memory together."""
    return whole_tiles(LOGITS // int(decoder.config.vocab_size))


def whole_tiles(rows: int) -> int:
    """``rows`` within reason, down to whole tiles of a matrix product where there is more than one: at a vocabulary of
    128,256 the 523 rows that fit take as long as 640, and 512 take their own time."""
    return min(2048, max(64, rows - rows % TILE if rows > TILE else rows))
