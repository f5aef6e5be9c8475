"""Sums for least squares over a stream of tokens: what a layer writes from, against what is missing above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from prunecomp.data.windows import Batch
from prunecomp.engine.parallel import total
from prunecomp.engine.placement import Demand
from prunecomp.ops import linear_gram

FINE_UP_TO = 8192
"""Features up to which sums are kept in float64; past it a Gram matrix takes a gigabyte and more, and chunks that were
summed in float32 are added in float32."""

TINY = torch.finfo(torch.float32).tiny


def sums_dtype(features: int) -> torch.dtype:
    return torch.float64 if features <= FINE_UP_TO else torch.float32


@dataclass
class NormalEquations:
    """Sums over rows (tokens), each with a weight w^2, of features h [k], what is there y [d] and what is wanted z [d].

    With a scalar a, the D that minimises ``sum w^2 |h D - (z / a - y)|^2 + ridge * mean(diag(G)) * |D|^2`` is
    ``(G + ridge mean(diag G) I)^-1 (H_z / a - H_y)``.
    """

    gram: torch.Tensor
    """[k, k]: G, sum of w^2 h^T h."""
    cross: torch.Tensor
    """[k, 2 d]: H_z beside H_y, sums of w^2 h^T z and w^2 h^T y."""
    squares: torch.Tensor
    """[3] float64: sums of w^2 <z, z>, w^2 <y, z> and w^2 <y, y>."""

    @classmethod
    def empty(cls, k: int, d: int, device: torch.device, dtype: torch.dtype | None = None) -> NormalEquations:
        dtype = sums_dtype(k) if dtype is None else dtype
        gram, cross = (torch.zeros(k, width, dtype=dtype, device=device) for width in (k, 2 * d))
        return cls(gram, cross, torch.zeros(3, dtype=torch.float64, device=device))

    def add(self, h: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> None:
        """Rows [T, k], [T, d] and [T, d], weighted by the inverse root mean square of z: what reads a stream ignores
        its size. Products are taken in float32 or better."""
        work = torch.promote_types(z.dtype, torch.float32)
        z = z.to(work)
        w = weight(z)
        z, y, h = z * w, y.to(work) * w, h.to(work) * w
        if h.shape[1]:
            linear_gram(h, torch.cat([z, y], dim=1), self.gram, self.cross)
        self.squares += torch.stack([(one * other).sum(dtype=torch.float64) for one, other in ((z, z), (y, z), (y, y))])

    def summed(self) -> NormalEquations:
        """Of all processes."""
        return NormalEquations(total(self.gram), total(self.cross), total(self.squares))

    @property
    def scalar(self) -> float:
        """The a that minimises ``sum w^2 |z - a y|^2``."""
        _, yz, yy = self.squares.tolist()
        return float(yz / yy) if yy else 1.0

    def missing(self, scalar: float) -> torch.Tensor:
        """[k, d] float64: sum of ``w^2 h^T (z / a - y)``."""
        wanted, there = self.cross.double().chunk(2, dim=1)
        return wanted / scalar - there

    def solve(self, ridge: float, missing: torch.Tensor) -> torch.Tensor:
        """D, [k, d] float64, for a right-hand side [k, d]."""
        damped = self.gram.double()
        if damped is self.gram:
            damped = damped.clone()
        shrink = ridge * damped.diagonal().mean()
        damped.diagonal().add_(shrink if shrink > 0 else 1.0)  # no feature is ever there: nothing can be learned
        factor, _ = torch.linalg.cholesky_ex(damped, check_errors=True)
        return torch.cholesky_solve(missing, factor)

    def error(self, scalar: float) -> float:
        """Root mean square of what is missing, over that of what is wanted, before anything is fitted."""
        zz, yz, yy = self.squares.tolist()
        return float((max(zz - 2 * scalar * yz + scalar**2 * yy, 0.0) / zz) ** 0.5) if zz else 0.0


def weight(z: torch.Tensor) -> torch.Tensor:
    """[T, 1]: the inverse root mean square of each row, 0 for a row of zeros."""
    size = z.square().mean(dim=-1, keepdim=True).sqrt()
    return torch.where(size > TINY, 1.0 / size.clamp(min=TINY), 0.0)


@dataclass
class Watched:
    """What a module was given and gave as it ran last."""

    inputs: torch.Tensor | None = None
    output: torch.Tensor | None = None

    def see(self, inputs: torch.Tensor, output: torch.Tensor) -> None:
        self.inputs, self.output = inputs, output

    def rows(self, batch: Batch, *, of_output: bool = False) -> torch.Tensor:
        """[T, width] of the micro-batch's tokens, without padding."""
        seen = self.output if of_output else self.inputs
        assert seen is not None
        return token_rows(batch, seen.reshape(*batch.tokens.shape, -1))  # OPT runs its MLP on all tokens in one row


def token_rows(batch: Batch, stream: torch.Tensor) -> torch.Tensor:
    """The rows of a stream [B, S, d] that are tokens and not padding, [T, d]."""
    if batch.packed or batch.lengths is None:
        return stream.flatten(0, 1)
    real = torch.arange(batch.tokens.shape[1]) < batch.lengths.unsqueeze(1)
    return stream[real.to(stream.device)]


Features = Callable[[Batch], torch.Tensor]


def repair_demand(features: int, hidden_size: int, boundaries: int) -> Demand:
    """What fitting on so many features holds beside a forward pass: the sums, the two float64 matrices of a solve, and
    a micro-batch's rows; and ``boundaries`` of room for all windows beside those that the model has itself."""
    itemsize = sums_dtype(features).itemsize
    sums = itemsize * features * (features + 2 * hidden_size) + 2 * 8 * features * features
    row = 4 * (2 * features + 6 * hidden_size)
    return Demand(lambda num_tokens: sums + num_tokens * row, boundaries)


def side_by_side(features: Sequence[Features]) -> Features:
    """Several rows of features as one."""
    return features[0] if len(features) == 1 else lambda batch: torch.cat([one(batch) for one in features], dim=1)
