"""Plain PyTorch definitions of the operations: short, and right before fast. Every other back end is held to these."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

ZERO_COSINE = 0.5
"""The cosine that the paper's code gives to a pair with a zero vector."""

SUMS = ("cosine", "angular", "dot", "input_square", "square", "input_norm", "norm", "norm_ratio")
"""The columns of ``sums`` of :func:`layer_stats`: cos(x, y), 0.5 where either is the zero vector; acos(cos(x, y)) / pi;
<x, y>; |x|^2; |y|^2; |x|; |y|; and |y| / |x| over the tokens where x is not zero."""
COUNTS = ("zero_rows", "zero_input_rows", "nonfinite_rows")
"""The columns of ``counts`` of :func:`layer_stats`: tokens where x or y is the zero vector; where x is; and where
x or y holds NaN or infinity, or is too long for its square to be finite."""


def layer_stats(
    x: torch.Tensor, y: torch.Tensor, lengths: torch.Tensor | None, with_input: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over the tokens of each sequence of a layer's input ``x`` and output ``y``, both [N, S, d].

    Returns ``sums`` [N, 8] float64 and ``counts`` [N, 3] int64 with the columns of :data:`SUMS` and :data:`COUNTS`,
    sum |y| by channel, [N, d] float64, and the same of ``x`` if ``with_input``, else [0, d]. Products are taken in
    float32 (float64 for float64 input), sums over tokens in float64. Rows from ``lengths[n]`` on enter nothing.
    """
    work = torch.promote_types(x.dtype, torch.float32)
    x, y = x.to(work), y.to(work)
    valid = None if lengths is None else valid_rows(lengths, x.shape[1])  # [N, S]
    x_norm, y_norm = torch.linalg.vector_norm(x, dim=-1), torch.linalg.vector_norm(y, dim=-1)  # [N, S]
    norms = x_norm * y_norm
    zero, zero_input = norms == 0, x_norm == 0
    dot = torch.linalg.vecdot(x, y)
    cosine = torch.where(zero, ZERO_COSINE, dot / norms.masked_fill(zero, 1.0))
    ratio = (y_norm / x_norm.masked_fill(zero_input, 1.0)).masked_fill(zero_input, 0.0)
    columns = [cosine, angle(cosine), dot, x_norm.square(), y_norm.square(), x_norm, y_norm, ratio]
    flags = [zero, zero_input, ~torch.isfinite(norms)]
    if valid is not None:
        columns = [torch.where(valid, column, 0.0) for column in columns]
        flags = [flag & valid for flag in flags]
        y = torch.where(valid.unsqueeze(-1), y, 0.0)
        x = torch.where(valid.unsqueeze(-1), x, 0.0)
    return (
        torch.stack([column.sum(dim=1, dtype=torch.float64) for column in columns], dim=-1),
        torch.stack([flag.sum(dim=1) for flag in flags], dim=-1),
        y.abs().sum(dim=1, dtype=torch.float64),
        x.abs().sum(dim=1, dtype=torch.float64) if with_input else x.new_zeros(0, x.shape[-1], dtype=torch.float64),
    )


def layer_gram(states: Sequence[torch.Tensor], lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the tokens of each sequence, for every pair of M states, each [N, S, d].

    Returns ``sums`` [4, N, M, M] float64, with i the row, of the cosine, the angular distance, the inner product and
    the ratio ``|x_j| / |x_i|``, and the counts of zero and of non-finite rows, [N, M, 2] int64.
    """
    first = states[0]
    work = torch.promote_types(first.dtype, torch.float32)
    num_sequences, seqlen, m = first.shape[0], first.shape[1], len(states)
    sums = torch.zeros(4, num_sequences, m, m, dtype=torch.float64, device=first.device)
    counts = torch.zeros(num_sequences, m, 2, dtype=torch.int64, device=first.device)
    for n in range(num_sequences):  # one sequence at a time: the Gram matrices of all tokens would be large
        tokens = torch.stack([state[n] for state in states], dim=1).to(work)  # [S, M, d]
        gram = tokens @ tokens.mT  # [S, M, M]
        norm = torch.linalg.vector_norm(tokens, dim=-1)  # [S, M]
        norms = norm.unsqueeze(-1) * norm.unsqueeze(-2)
        zero = norms == 0
        cosine = torch.where(zero, ZERO_COSINE, gram / norms.masked_fill(zero, 1.0))
        below = norm.masked_fill(norm == 0, 1.0).unsqueeze(-1)
        ratio = (norm.unsqueeze(-2) / below).masked_fill((norm == 0).unsqueeze(-1), 0.0)
        flags = torch.stack([norm == 0, ~torch.isfinite(norm)], dim=-1)
        columns = torch.stack([cosine, angle(cosine), gram, ratio])  # [4, S, M, M]
        if lengths is not None:
            valid = valid_rows(lengths[n : n + 1], seqlen)[0]
            columns = torch.where(valid.view(1, -1, 1, 1), columns, 0.0)
            flags = flags & valid.view(-1, 1, 1)
        sums[:, n] = columns.sum(dim=1, dtype=torch.float64)
        counts[n] = flags.sum(dim=0)
    return sums, counts


def fresh_stats(x: torch.Tensor, with_input: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What :func:`layer_stats` gives of states like ``x``, to be written to."""
    n, _, d = x.shape
    return (
        x.new_empty(n, len(SUMS), dtype=torch.float64),
        x.new_empty(n, len(COUNTS), dtype=torch.int64),
        x.new_empty(n, d, dtype=torch.float64),
        x.new_empty(n if with_input else 0, d, dtype=torch.float64),
    )


def fresh_gram(states: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`layer_gram` gives of ``states``, to be written to."""
    first, n, m = states[0], states[0].shape[0], len(states)
    return first.new_empty(4, n, m, m, dtype=torch.float64), first.new_empty(n, m, 2, dtype=torch.int64)


def weight_norms(w: torch.Tensor) -> torch.Tensor:
    """Sum of |w| and of w^2 over a matrix, [2] float64."""
    work = w.to(torch.promote_types(w.dtype, torch.float32))
    return torch.stack([work.abs().sum(dtype=torch.float64), work.square().sum(dtype=torch.float64)])


def weight_salience(w: torch.Tensor, g: torch.Tensor, acc: torch.Tensor) -> torch.Tensor:
    """``acc += w * g`` in acc's dtype, in place; the sum of |acc| afterwards, a float64 scalar."""
    acc.add_(w.to(acc.dtype) * g.to(acc.dtype))
    return acc.abs().sum(dtype=torch.float64)


def linear_gram(a: torch.Tensor, b: torch.Tensor, ata: torch.Tensor, atb: torch.Tensor) -> None:
    """``ata += a^T a`` and ``atb += a^T b`` in place; a [T, k], b [T, m], products summed in float32 or better."""
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):  # tensor cores: 16-bit factors, float32 sums
        ata += torch.mm(a.t(), a, out_dtype=torch.float32)
        atb += torch.mm(a.t(), b, out_dtype=torch.float32)
        return
    work = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(work), b.to(work)
    ata += a.t() @ a
    atb += a.t() @ b


def angle(cosine: torch.Tensor) -> torch.Tensor:
    """Angular distance ``acos(cos) / pi`` in 0..1 (Gromov et al., arXiv 2403.17887, eq. 7)."""
    return torch.acos(cosine.clamp(-1.0, 1.0)) / math.pi


def valid_rows(lengths: torch.Tensor, seqlen: int) -> torch.Tensor:
    """[N, S] bool: the first ``lengths[n]`` rows of each sequence."""
    return torch.arange(seqlen, device=lengths.device) < lengths.unsqueeze(-1)
