"""Plain PyTorch definitions of the operations: short, and right before fast."""

from __future__ import annotations

from typing import NamedTuple

import torch


class LayerStats(NamedTuple):
    """Sums over the tokens of each sequence; N sequences, d channels."""

    cosine: torch.Tensor
    """[N] float64: sum over tokens of cos(x, y)."""
    magnitude: torch.Tensor
    """[N, d] float64: sum over tokens of |y|, channel by channel."""
    zero_rows: torch.Tensor
    """[N] int64: tokens where x or y is the zero vector."""
    nonfinite_rows: torch.Tensor
    """[N] int64: tokens where x or y holds NaN or infinity."""


ZERO_COSINE = 0.5
"""The cosine that the paper's code gives to a pair with a zero vector."""


def layer_stats(x: torch.Tensor, y: torch.Tensor) -> LayerStats:
    """Statistics of a layer's input ``x`` and output ``y``, both [N, S, d] in any floating dtype.

    Products are taken in float32 (float64 for float64 input), sums over tokens in float64. Block influence is
    ``1 - cosine / S`` (ShortGPT, arXiv 2403.03853, eq. 1; Prune&Comp section 3).
    """
    work = torch.promote_types(x.dtype, torch.float32)
    x, y = x.to(work), y.to(work)
    norms = torch.linalg.vector_norm(x, dim=-1) * torch.linalg.vector_norm(y, dim=-1)  # [N, S]
    zero = norms == 0
    cosine = torch.where(zero, ZERO_COSINE, torch.linalg.vecdot(x, y) / norms.masked_fill(zero, 1.0))
    return LayerStats(
        cosine=cosine.sum(dim=1, dtype=torch.float64),
        magnitude=magnitude(y),
        zero_rows=zero.sum(dim=1),
        nonfinite_rows=(~torch.isfinite(norms)).sum(dim=1),
    )


def magnitude(x: torch.Tensor) -> torch.Tensor:
    """Sum over tokens of |x|, channel by channel: [N, S, d] to [N, d] float64."""
    return x.abs().sum(dim=1, dtype=torch.float64)
