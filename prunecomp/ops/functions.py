"""The operations as people call them: arguments checked once, results by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from prunecomp.errors import OptionError
from prunecomp.ops import library
from prunecomp.ops.reference import COUNTS, SUMS

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class LayerStats(NamedTuple):
    """Sums over the tokens of each of N sequences. Sums of a sequence with rows that are not finite mean nothing."""

    sums: torch.Tensor
    """[N, 8] float64: :data:`SUMS`, each an attribute too, as in ``stats.cosine``."""
    counts: torch.Tensor
    """[N, 3] int64: :data:`COUNTS`, in the same way."""
    magnitude: torch.Tensor
    """[N, d] float64: sum of |y|, channel by channel."""
    input_magnitude: torch.Tensor
    """[N, d] float64: sum of |x|, channel by channel; [0, d] unless asked for."""

    def __getattr__(self, name: str) -> torch.Tensor:
        """[N]: a column of ``sums`` or of ``counts``, by its name in :data:`SUMS` or :data:`COUNTS`."""
        for columns, names in ((self.sums, SUMS), (self.counts, COUNTS)):
            if name in names:
                return columns[:, names.index(name)]
        raise AttributeError(name)


class LayerGram(NamedTuple):
    """Sums over the tokens of each of N sequences, for every pair (i, j) of M states; [N, M, M] float64."""

    cosine: torch.Tensor
    angular: torch.Tensor
    dot: torch.Tensor
    norm_ratio: torch.Tensor
    """Of ``|x_j| / |x_i|``, over the tokens where x_i is not zero."""
    counts: torch.Tensor
    """[N, M, 2] int64: zero rows, and rows that are not finite, of each state."""


def layer_stats(
    x: torch.Tensor,
    y: torch.Tensor,
    lengths: torch.Tensor | None = None,
    *,
    with_input: bool = False,
    backend: str | None = None,
) -> LayerStats:
    """Statistics of a layer's input ``x`` and output ``y``, both [N, S, d] in float16, bfloat16, float32 or float64.

    Each is read once. Products are taken in float32 (float64 for float64 input) and sums over tokens end in float64, in
    an order that depends on the shape alone. Block influence is ``1 - cosine / tokens`` (ShortGPT, arXiv 2403.03853,
    eq. 1; Prune&Comp, section 3).

    Parameters
    ----------
    lengths : int64 [N]; rows of sequence n from ``lengths[n]`` on (clamped to 0..S) enter nothing.
    with_input : also sum |x| by channel.
    backend : ``reference``, ``native``, ``triton`` or ``cuda``; else ``PRUNECOMP_BACKEND``, else what is best.

    Raises :class:`OptionError` for shapes or dtypes that do not fit, :class:`BackendError` for a back end that cannot
    run.
    """
    if x.shape != y.shape or x.dtype != y.dtype or x.device != y.device:
        raise OptionError(f"layer_stats: x and y must match; they are {_describe(x)} and {_describe(y)}")
    _check_states("layer_stats", x, lengths)
    return LayerStats(*library.layer_stats(_rows(x), _rows(y), _lengths(lengths, x.device), with_input, backend or ""))


def layer_gram(
    states: Sequence[torch.Tensor], lengths: torch.Tensor | None = None, *, backend: str | None = None
) -> LayerGram:
    """Cosines, angular distances, inner products and norm ratios of all pairs of M states, each [N, S, d].

    The Gram matrix of every token is formed, normalised and summed without leaving the chip; each state is read once.
    ``lengths``, ``backend`` and errors as in :func:`layer_stats`.
    """
    if not states:
        raise OptionError("layer_gram: no states given")
    first = states[0]
    for state in states:
        if state.shape != first.shape or state.dtype != first.dtype or state.device != first.device:
            raise OptionError(f"layer_gram: states must match; they are {_describe(first)} and {_describe(state)}")
    _check_states("layer_gram", first, lengths)
    rows = [_rows(state) for state in states]
    if any(state.stride() != rows[0].stride() for state in rows):
        rows = [state.contiguous() for state in rows]
    sums, counts = library.layer_gram(rows, _lengths(lengths, first.device), backend or "")
    cosine, angular, dot, ratio = sums.unbind()
    return LayerGram(cosine, angular, dot, ratio, counts)


def weight_norms(w: torch.Tensor, p: Sequence[int] = (1, 2), *, backend: str | None = None) -> torch.Tensor:
    """Sums of ``|w|^p`` over a weight, for each p in 1, 2, in one read: float64 [len(p)] (Mag+ uses p = 1)."""
    if w.dtype not in FLOATING:
        raise OptionError(f"weight_norms: a floating-point weight is needed, not {_describe(w)}")
    if not set(p) <= {1, 2}:
        raise OptionError(f"weight_norms: p = {tuple(p)}: choose 1, 2 or both")
    matrix = w.reshape(1, -1) if w.ndim < 2 else w.flatten(0, -2)
    both = library.weight_norms(_rows(matrix), backend or "")
    return torch.stack([both[order - 1] for order in p])


def weight_salience(w: torch.Tensor, g: torch.Tensor, acc: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """``acc += w * g`` in place and the sum of ``|acc|`` afterwards, in one pass: a float64 scalar.

    ``acc`` is float32 (or float64), contiguous, of the shape of ``w`` and ``g``. Taylor+ is this sum after the last
    sample (Prune&Comp, section 5).
    """
    if not (w.shape == g.shape == acc.shape) or not (w.device == g.device == acc.device):
        raise OptionError(f"weight_salience: {_describe(w)}, {_describe(g)} and {_describe(acc)} must match")
    if w.dtype not in FLOATING or g.dtype not in FLOATING or acc.dtype not in (torch.float32, torch.float64):
        raise OptionError("weight_salience: w and g must be floating point, acc float32 or float64")
    if not acc.is_contiguous():
        raise OptionError("weight_salience: acc must be contiguous, since it is written in place")
    if torch.float64 in (w.dtype, g.dtype, acc.dtype):
        backend = "reference"
    total: torch.Tensor = library.weight_salience(w.contiguous(), g.contiguous(), acc, backend or "")
    return total


def linear_gram(
    a: torch.Tensor, b: torch.Tensor, ata: torch.Tensor, atb: torch.Tensor, *, backend: str | None = None
) -> None:
    """``ata += a^T a`` and ``atb += a^T b`` in place, for least squares over a stream of chunks of rows.

    ``a`` [T, k] and ``b`` [T, m] share a dtype; ``ata`` [k, k] and ``atb`` [k, m] are float32 or float64. Products are
    summed in float32 within a chunk, chunks in the dtype of the accumulators.
    """
    fits = a.ndim == b.ndim == 2 and a.shape[0] == b.shape[0] and a.dtype == b.dtype and a.dtype in FLOATING
    k, m = a.shape[-1], b.shape[-1]
    if not fits or ata.shape != (k, k) or atb.shape != (k, m) or ata.dtype != atb.dtype:
        raise OptionError(
            f"linear_gram: {_describe(a)} and {_describe(b)} do not fit accumulators {_describe(ata)}, {_describe(atb)}"
        )
    if ata.dtype not in (torch.float32, torch.float64):
        raise OptionError(f"linear_gram: accumulators must be float32 or float64, not {ata.dtype}")
    if a.shape[0]:
        library.linear_gram(a, b, ata, atb, backend or "")


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"


def _check_states(name: str, x: torch.Tensor, lengths: torch.Tensor | None) -> None:
    if x.ndim != 3 or x.shape[-1] == 0 or x.dtype not in FLOATING:
        raise OptionError(f"{name}: states must be floating point of shape [N, S, d], not {_describe(x)}")
    if lengths is not None and (lengths.shape != x.shape[:1] or lengths.dtype not in (torch.int64, torch.int32)):
        raise OptionError(f"{name}: lengths must be int64 [{x.shape[0]}], not {_describe(lengths)}")


def _rows(x: torch.Tensor) -> torch.Tensor:
    """The same tensor with its last axis contiguous, copied only where it is not."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _lengths(lengths: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if lengths is None else lengths.to(device=device, dtype=torch.int64).contiguous()
