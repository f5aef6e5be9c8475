"""Every tolerance that tests share: derived from the work, or measured over many draws and widened by a stated margin.

``make soak`` draws again. What only one file uses stands there, with its reason beside it.
"""

from __future__ import annotations

import torch

ROUNDINGS = 32
"""Derived. A small model rounds about ten times a layer on the way from embedding to logits, over eight layers; errors
of random sign add like the square root (9), and a factor of four covers the norms' amplification."""

NORM_EPSILON = 1e-4
"""Measured. A fold moves a norm's epsilon e by e / (2 v) |1 - 1 / a^2| of what is read, where v is the variance of one
token's stream, which has no bound from below: a few tokens of small embedding make the tail. Folds of 0.5, 3, 0.8 and 2
in the models of :mod:`tests.models`, DRAWN draws: the median is 1.5e-5, the largest LARGEST. A fold that leaves out one
writer, or rounds it to bfloat16, is off by 1e-3 or more."""

ROUNDED_WEIGHTS = 4
"""Measured. Logits in float32 after a fold has rounded its weights once more, to 16 bits, in units of that epsilon: the
largest of DRAWN16 draws is LARGEST16, and it falls with the root of the width. The same folds run in 16 bits throughout
are off by 3, and may then be off by more than a wrong scale of 1 % would be: they are not compared."""

SCALE = 1e-5
"""Scales and scores in float32 against float64: asked for by the specification. Derived: a score is a mean
over tokens of what has some 30 roundings, 4e-6 if none of them cancelled."""


def relative(dtype: torch.dtype) -> float:
    """Allowed relative error, in the 2-norm, of logits computed in float32 with folded weights kept in ``dtype``."""
    rounded = 0.0 if dtype == torch.float32 else ROUNDED_WEIGHTS * torch.finfo(dtype).eps
    return ROUNDINGS * torch.finfo(torch.float32).eps + NORM_EPSILON + rounded


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """``|got - expected| / |expected|`` in float64; NaN stays NaN and fails every comparison."""
    expected = expected.double()
    return float((got.double() - expected).norm() / expected.norm())
