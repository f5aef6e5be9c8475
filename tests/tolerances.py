"""Every tolerance of the tests, with its derivation."""

from __future__ import annotations

import torch

ROUNDINGS = 32
"""A small model rounds about ten times a layer on the way from embedding to logits, over eight layers; errors of
random sign add like the square root (9), and a factor of four covers the norms' amplification."""

NORM_EPSILON = 4 * 1e-6 / (2 * 0.0625) * 0.75
"""A fold moves a norm's epsilon: by eps / (2 v) |1 - 1 / a^2| of what is read. Here eps is 1e-6, the least variance v
of a stream is that of an embedding of size 0.5 behind a seam of 0.5, a is 2, and four norms or so read such a one."""

SCALE = 1e-5
"""Scales and scores in float32 against float64: asked for by the specification of the method."""


def relative(dtype: torch.dtype) -> float:
    """Allowed relative error, in the 2-norm, of logits computed in ``dtype``."""
    return ROUNDINGS * torch.finfo(dtype).eps + NORM_EPSILON


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """``|got - expected| / |expected|`` in float64; NaN stays NaN and fails every comparison."""
    expected = expected.double()
    return float((got.double() - expected).norm() / expected.norm())
