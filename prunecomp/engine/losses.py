"""Next-token losses from what leaves the last layer, without ever holding the logits of many tokens."""

from __future__ import annotations

import torch
from torch.nn import functional

from prunecomp.data.windows import Batch
from prunecomp.model.decoder import Decoder
from prunecomp.model.weights import all_finite

LOGITS = 2**26
"""Logits in memory at once: 256 MB in float32."""


TILE = 128
"""Rows that a matrix product takes together on a GPU."""


def batch_losses(decoder: Decoder, batch: Batch, stream: torch.Tensor) -> torch.Tensor:
    """Sum of the losses of each of a micro-batch's B sequences, [B] float64 on the CPU; ``stream`` is [B, S, d], or
    [1, T, d] packed. NaN for a sequence with a value in the stream that is not finite, be it where no loss is taken."""
    if not batch.packed:
        losses = window_losses(decoder, batch.tokens, stream, batch.lengths)
        return torch.where(finite(stream, batch.lengths), losses, torch.nan).cpu()
    each = zip(batch.sequences(batch.tokens), batch.sequences(stream), strict=True)
    sums = [torch.where(finite(y, None), window_losses(decoder, tokens, y), torch.nan) for tokens, y in each]
    return torch.cat(sums).cpu()


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


def window_losses(
    decoder: Decoder, tokens: torch.Tensor, stream: torch.Tensor, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of the losses of each window, [B] float64, from what leaves the last layer, [B, S, d].

    Each window predicts all its tokens but the first.
    """
    at_once = rows_at_once(decoder)
    targets = tokens[:, 1:].to(stream.device)
    flat, wanted = stream[:, :-1].flatten(0, 1), targets.flatten()
    each = torch.cat(
        [
            functional.cross_entropy(decoder.logits(rows).float(), want, reduction="none")
            for rows, want in zip(flat.split(at_once), wanted.split(at_once), strict=True)
        ]
    )
    each = each.view(targets.shape)
    if lengths is not None:
        real = torch.arange(1, tokens.shape[1]) < lengths.unsqueeze(1)
        each = torch.where(real.to(each.device), each, 0.0)
    return each.sum(dim=1, dtype=torch.float64)
