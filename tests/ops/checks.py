"""Ragged cases for the statistics, and what every back end is held to: float64 truth, to what float32 can give.

The error of a back end may be the error of the PyTorch reference on the same input, plus the slack of :data:`SLACK`
roundings of float32 a token. A float32 sum of d products in lanes has an error of about sqrt(d) / 2 roundings of
``|x| |y|`` at most; quotients and roots add a few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prunecomp.ops import LayerGram, LayerStats, layer_gram, layer_stats
from tests.oracles import statistics

EPSILON = float(torch.finfo(torch.float32).eps)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def slack(d: int) -> float:
    """Relative to the size of one token's term."""
    return EPSILON * (4 + math.sqrt(d))


@dataclass(frozen=True)
class Shape:
    """N sequences of S tokens of d channels; ``lengths`` are drawn where ``ragged``."""

    n: int
    s: int
    d: int
    ragged: bool = False
    strided: bool = False


SHAPES = (
    Shape(1, 1, 1),
    Shape(2, 3, 7, ragged=True),
    Shape(3, 63, 48),
    Shape(2, 130, 65, ragged=True),
    Shape(1, 257, 192),
    Shape(3, 17, 1000, ragged=True, strided=True),
    Shape(2, 33, 4097, ragged=True),
    Shape(4, 0, 16),
)


def draw_states(
    shape: Shape, dtype: torch.dtype, generator: torch.Generator, count: int = 2
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """A stream that each state turns a little, with some zero rows and channels of very different size, and lengths."""
    n, s, d = shape.n, shape.s, shape.d
    sizes = torch.exp(torch.randn(d, generator=generator))
    stream = torch.randn(n, s, d, generator=generator) * sizes
    states = []
    for _ in range(count):
        zero = torch.rand(n, s, 1, generator=generator) < 0.05
        states.append(stream.masked_fill(zero, 0.0).to(dtype))
        stream = stream + 0.3 * torch.randn(n, s, d, generator=generator) * sizes
    if shape.strided:  # every second row of every second sequence of something larger
        states = [spread(state) for state in states]
    lengths = None
    if shape.ragged:
        lengths = torch.randint(0, s + 1, (n,), generator=generator)
        lengths[0] = 0
    return states, lengths


def spread(state: torch.Tensor) -> torch.Tensor:
    n, s, d = state.shape
    larger = torch.full((2 * n, 2 * s, d + 3), torch.nan, dtype=state.dtype)
    view = larger[::2, ::2, :d]
    view.copy_(state)
    return view


def check_layer_stats(
    got: LayerStats, x: torch.Tensor, y: torch.Tensor, lengths: torch.Tensor | None, with_input: bool
) -> None:
    x, y = x.cpu(), y.cpu()
    truth = statistics.layer_stats(x, y, lengths)
    base = layer_stats(x, y, lengths, with_input=True, backend="reference")
    a, b = x.double(), y.double()
    if lengths is not None:
        inside = torch.arange(x.shape[1]) < lengths.unsqueeze(-1)
        a, b = a * inside.unsqueeze(-1), b * inside.unsqueeze(-1)
    tokens = np.full(x.shape[0], x.shape[1]) if lengths is None else lengths.numpy()
    products = (a.norm(dim=-1) * b.norm(dim=-1)).sum(dim=1).numpy()
    sizes = {
        "cosine": tokens,
        # acos is steep at 1: an error e of the cosine moves it by sqrt(2 e) there.
        "angular": tokens * math.sqrt(2 * slack(x.shape[-1])) / slack(x.shape[-1]),
        "dot": products,
        "input_square": truth["input_square"],
        "square": truth["square"],
        "input_norm": truth["input_norm"],
        "norm": truth["norm"],
        "norm_ratio": truth["norm_ratio"],
        "magnitude": truth["magnitude"],
        "input_magnitude": truth["input_magnitude"],
    }
    for name, size in sizes.items():
        if name == "input_magnitude" and not with_input:
            assert got.input_magnitude.shape == (0, x.shape[-1])
            continue
        value = getattr(got, name).cpu()
        assert value.dtype == torch.float64
        _check(name, value.numpy(), truth[name], getattr(base, name).numpy(), size, x.shape[-1])
    for name in ("zero_rows", "zero_input_rows"):
        np.testing.assert_array_equal(getattr(got, name).cpu().numpy(), truth[name], err_msg=name)
    assert not got.nonfinite_rows.any()


def check_layer_gram(got: LayerGram, states: Sequence[torch.Tensor], lengths: torch.Tensor | None) -> None:
    states = [state.cpu() for state in states]
    truth = statistics.layer_gram(list(states), lengths)
    base = layer_gram(states, lengths, backend="reference")
    n, s, d = states[0].shape
    tokens = np.full(n, s) if lengths is None else lengths.numpy()
    each = np.broadcast_to(tokens[:, None, None], truth["cosine"].shape)
    squares = np.sqrt(np.einsum("nii->ni", truth["dot"]))
    sizes = {
        "cosine": each,
        "angular": each * math.sqrt(2 * slack(d)) / slack(d),
        "dot": squares[:, :, None] * squares[:, None, :],
        "norm_ratio": truth["norm_ratio"],
    }
    for name, size in sizes.items():
        value = getattr(got, name).cpu()
        assert value.dtype == torch.float64
        _check(name, value.numpy(), truth[name], getattr(base, name).numpy(), size, d)
    np.testing.assert_array_equal(got.counts[..., 0].cpu().numpy(), truth["zero_rows"])
    assert not got.counts[..., 1].any()


def _check(name: str, got: np.ndarray, truth: np.ndarray, base: np.ndarray, size: np.ndarray, d: int) -> None:
    allowed = np.abs(base - truth) + slack(d) * size
    wrong = np.abs(got - truth)
    assert (wrong <= allowed).all(), (
        f"{name}: off by {(wrong / np.maximum(allowed, 1e-300)).max():.3g} of the allowance"
    )
