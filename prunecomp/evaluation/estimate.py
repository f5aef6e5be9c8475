"""A mean over the tokens of a text, with the standard error that its windows give it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


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
