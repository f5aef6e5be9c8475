"""Perplexity of a pruned model, by the protocol of the pruning literature."""

from __future__ import annotations

import math

from prunecomp.data.windows import Windows
from prunecomp.engine.placement import Placement
from prunecomp.engine.progress import Progress, silent
from prunecomp.engine.run import Run
from prunecomp.evaluation.estimate import Estimate
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack


def perplexity(
    decoder: Decoder, stack: LayerStack, windows: Windows, placement: Placement, progress: Progress = silent
) -> float:
    """``exp`` of :meth:`prunecomp.engine.run.Run.loss`; infinite where that overflows. Each window stands alone."""
    run = Run(decoder, windows, placement, stack=stack, measured=False, progress=progress)
    return to_perplexity(run.loss(keep=False))


def to_perplexity(loss: float) -> float:
    """From nats a token."""
    return math.exp(loss) if loss < 700 else math.inf


def perplexity_of(loss: Estimate) -> Estimate:
    """The same with its standard error, to first order: ``exp(loss) * se``."""
    value = to_perplexity(loss.value)
    return Estimate(value, None if loss.standard_error is None else value * loss.standard_error)
