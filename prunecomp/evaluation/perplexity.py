"""Perplexity of a pruned model, by the protocol of the pruning literature, and how sure a mean over a text is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from prunecomp.data.windows import Windows
from prunecomp.engine.placement import Placement
from prunecomp.engine.progress import Progress, silent
from prunecomp.engine.run import Run
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


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error; None where one window is all there is."""

    value: float
    standard_error: float | None

    def shown(self, digits: int = 3) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.{digits}f}"
        return f"{self.value:,.{digits}f}{error}"


def token_mean(sums: torch.Tensor, tokens: torch.Tensor) -> Estimate:
    """The mean over all tokens, from the ``sums`` over each window's, both [N].

    Tokens of one window depend on each other, so windows are what is drawn: the standard error is that of a ratio of
    means, ``sqrt(N / (N - 1) sum (s_i - r t_i)^2) / sum t_i`` (Cochran, Sampling Techniques, eq. 6.12).
    """
    sums, tokens = sums.double(), tokens.double()
    count, total = len(sums), float(tokens.sum())
    mean = float(sums.sum()) / total
    if count < 2:
        return Estimate(mean, None)
    squares = float((sums - mean * tokens).square().sum())
    return Estimate(mean, math.sqrt(count / (count - 1) * squares) / total)
