"""Perplexity of a pruned model, by the protocol of the pruning literature."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from prunecomp.data.windows import Windows
from prunecomp.engine.placement import micro_batch
from prunecomp.engine.progress import Advance
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack

LOGIT_ROWS = 2048
"""Tokens whose logits are in memory at once, in float32."""


def mean_loss(decoder: Decoder, stack: LayerStack, windows: Windows, advance: Advance | None = None) -> float:
    """Next-token cross entropy in nats, averaged over all predicted tokens of all windows.

    Each window stands alone and predicts its last S - 1 tokens. Windows have one length, so that the mean over tokens
    is the mean over windows of the official code.
    """
    total, predicted = 0.0, 0
    with decoder.evaluating():
        for tokens in windows.chunks(micro_batch(windows.count, windows.seqlen)):
            stream = decoder.run(stack, tokens)[:, :-1].flatten(0, 1)
            targets = tokens[:, 1:].flatten().to(stream.device)
            for rows, wanted in zip(stream.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True):
                losses = functional.cross_entropy(decoder.logits(rows).float(), wanted, reduction="none")
                total += float(losses.sum(dtype=torch.float64))
                predicted += len(wanted)
            if advance is not None:
                advance(len(tokens) * len(stack.alive))
    return total / predicted


def perplexity(decoder: Decoder, stack: LayerStack, windows: Windows, advance: Advance | None = None) -> float:
    """``exp`` of :func:`mean_loss`; infinite where that overflows."""
    loss = mean_loss(decoder, stack, windows, advance)
    return math.exp(loss) if loss < 700 else math.inf
