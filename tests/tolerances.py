"""Every tolerance that tests share: derived from the work, or measured over many draws and widened by a stated margin.

``make soak`` draws again. What only one file uses stands there, with its reason beside it.
"""

from __future__ import annotations

import torch

ROUNDINGS = 32
"""Derived. A small model rounds about ten times a layer on the way from embedding to logits, over eight layers; errors
of random sign add like the square root (9), and a factor of four covers the norms' amplification."""

NORM_EPSILON = 3e-4
"""Measured, by ``python -m tests.measuring epsilon``. A fold moves a norm's epsilon e by e / (2 v) |1 - 1 / a^2| of
what is read, where v is the variance of one token's stream, which has no bound from below: a few tokens of small
embedding make the tail. Of 1,100 folds of 0.5, 3 and 0.8 half are off by less than 1.5e-5, 99 % by less than 3.1e-5,
99.9 % by less than 4.9e-5 and all by less than 5.3e-5: a margin of 5. A fold that is off by a hundredth in one writer
is off by 3e-3 and more: tests/test_tolerances.py."""

ROUNDED_WEIGHTS = 4
"""Measured, by ``python -m tests.measuring rounded``: logits in float32 after a fold has rounded its weights once more,
in units of the epsilon of their 16 bits. Of 880 folds half are off by less than 0.3 and all by less than 1.2: a margin
of 3.4. Computed in 16 bits throughout the same are off by up to 4, which would hide a writer that was left out: that is
not compared."""

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
