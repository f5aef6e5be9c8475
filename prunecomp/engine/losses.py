"""Next-token losses from what leaves the last layer, without ever holding the logits of many tokens."""

from __future__ import annotations

import torch
from torch.nn import functional

from prunecomp.data.windows import Batch
from prunecomp.model.decoder import Decoder

LOGITS = 2**26
"""Logits in memory at once: 256 MB in float32."""


def batch_losses(decoder: Decoder, batch: Batch, stream: torch.Tensor) -> torch.Tensor:
    """Sum of the losses of each of a micro-batch's B sequences, [B] float64 on the CPU; ``stream`` is [B, S, d], or
    [1, T, d] packed."""
    if not batch.packed:
        return window_losses(decoder, batch.tokens, stream, batch.lengths).cpu()
    each = zip(batch.sequences(batch.tokens), batch.sequences(stream), strict=True)
    return torch.cat([window_losses(decoder, *sequence) for sequence in each]).cpu()


def window_losses(
    decoder: Decoder, tokens: torch.Tensor, stream: torch.Tensor, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of the losses of each window, [B] float64, from what leaves the last layer, [B, S, d].

    Each window predicts all its tokens but the first.
    """
    rows_at_once = min(2048, max(64, LOGITS // decoder.config.vocab_size))
    targets = tokens[:, 1:].to(stream.device)
    flat, wanted = stream[:, :-1].flatten(0, 1), targets.flatten()
    each = torch.cat(
        [
            functional.cross_entropy(decoder.logits(rows).float(), want, reduction="none")
            for rows, want in zip(flat.split(rows_at_once), wanted.split(rows_at_once), strict=True)
        ]
    )
    each = each.view(targets.shape)
    if lengths is not None:
        real = torch.arange(1, tokens.shape[1]) < lengths.unsqueeze(1)
        each = torch.where(real.to(each.device), each, 0.0)
    return each.sum(dim=1, dtype=torch.float64)
