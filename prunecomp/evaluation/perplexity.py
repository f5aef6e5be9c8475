"""Perplexity of a pruned model, by the protocol of the pruning literature."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from prunecomp.data.windows import Batch, Windows
from prunecomp.engine.parallel import Workers
from prunecomp.engine.placement import Placement, micro_batch
from prunecomp.engine.progress import Advance
from prunecomp.engine.states import StateStore
from prunecomp.engine.sweep import Sweeper
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack

LOGITS = 2**26
"""Logits in memory at once: 256 MB in float32."""


def mean_loss(
    decoder: Decoder, stack: LayerStack, windows: Windows, placement: Placement, advance: Advance | None = None
) -> float:
    """Next-token cross entropy in nats, averaged over all predicted tokens of all windows.

    Each window stands alone and predicts all its tokens but the first. Where windows have one length, the mean over
    tokens is the mean over windows of the official code. With several workers each runs its share of the windows.
    """
    workers = Workers.current(windows.count, micro_batch(windows.count, windows.seqlen))
    local = windows.take(workers.rows)
    losses = torch.zeros(local.count, dtype=torch.float64)

    def finish(batch: Batch, stream: torch.Tensor) -> None:
        if batch.packed:
            each = zip(batch.sequences(batch.tokens), batch.sequences(stream), strict=True)
            losses[batch.rows] = torch.cat([window_losses(decoder, *sequence) for sequence in each]).cpu()
        else:
            losses[batch.rows] = window_losses(decoder, batch.tokens, stream, batch.lengths).cpu()

    sweeper = Sweeper(decoder, local, placement)
    states = StateStore(sweeper.state_shape, decoder.device, {}, carry=placement.carry, disk=placement.disk_folder)
    with decoder.evaluating():
        sweeper.sweep(stack, 0, states, advance=advance, finish=finish)
    return float(workers.gather(losses).sum()) / (windows.num_tokens - windows.count)


def window_losses(
    decoder: Decoder, tokens: torch.Tensor, stream: torch.Tensor, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of the losses of each window, [B] float64, from what leaves the last layer, [B, S, d]."""
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


def perplexity(
    decoder: Decoder, stack: LayerStack, windows: Windows, placement: Placement, advance: Advance | None = None
) -> float:
    """``exp`` of :func:`mean_loss`; infinite where that overflows."""
    loss = mean_loss(decoder, stack, windows, placement, advance)
    return math.exp(loss) if loss < 700 else math.inf
