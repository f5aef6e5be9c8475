"""Every Triton kernel under the interpreter, on ragged shapes, against float64 truth. ``tests/ops/test_triton.py`` runs
this file in a process of its own."""

from __future__ import annotations

import dataclasses

import hypothesis
import pytest
import torch
from hypothesis import strategies

from prunecomp.ops import layer_gram, layer_stats, linear_gram, weight_norms, weight_salience
from prunecomp.ops.triton import obstacle
from tests.ops.checks import SHAPES, Shape, check_layer_gram, check_layer_stats, draw_states, slack

DTYPES = (torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow))
KINDS = (torch.float32, torch.bfloat16, torch.float16)
SMALL = tuple(shape for shape in SHAPES if shape.n * shape.s * shape.d < 200_000)
GRAM_SHAPES = (
    (Shape(1, 1, 1), 2),
    (Shape(2, 3, 7, ragged=True), 3),
    pytest.param(Shape(2, 7, 200, ragged=True, strided=True), 33, marks=pytest.mark.slow),
    (Shape(1, 131, 48), 4),
    pytest.param(Shape(1, 2, 130), 81, marks=pytest.mark.slow),
    (Shape(4, 0, 16), 4),
)
quick = hypothesis.settings(
    max_examples=8, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)


def test_the_interpreter_is_what_runs() -> None:
    assert obstacle("cpu") is None
    assert "TRITON_INTERPRET" in (obstacle("cuda") or "")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_layer_stats_agree_with_float64(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> None:
    (x, y), lengths = draw_states(shape, dtype, generator)
    for with_input in (False, True):
        got = layer_stats(x, y, lengths, with_input=with_input, backend="triton")
        check_layer_stats(got, x, y, lengths, with_input)


def test_layer_stats_agree_with_float64_over_many_slabs(generator: torch.Generator) -> None:
    (x, y), lengths = draw_states(Shape(2, 5, 4097, ragged=True), torch.bfloat16, generator)
    check_layer_stats(layer_stats(x, y, lengths, with_input=True, backend="triton"), x, y, lengths, True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "count"), GRAM_SHAPES, ids=str)
def test_layer_gram_agrees_with_float64(
    shape: Shape, count: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    states, lengths = draw_states(shape, dtype, generator, count)
    check_layer_gram(layer_gram(states, lengths, backend="triton"), states, lengths)


@pytest.mark.slow
@quick
@hypothesis.given(
    shape=strategies.builds(
        Shape,
        strategies.integers(1, 3),
        strategies.integers(1, 140),
        strategies.integers(1, 150),
        strategies.booleans(),
        strategies.booleans(),
    ),
    dtype=strategies.sampled_from(KINDS),
    seed=strategies.integers(0, 2**31),
)
def test_statistics_agree_with_float64_on_any_shape(shape: Shape, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    (x, y), lengths = draw_states(shape, dtype, generator)
    check_layer_stats(layer_stats(x, y, lengths, with_input=True, backend="triton"), x, y, lengths, True)
    few = dataclasses.replace(shape, s=min(shape.s, 20))
    states, lengths = draw_states(few, dtype, generator, 1 + seed % 5)
    check_layer_gram(layer_gram(states, lengths, backend="triton"), states, lengths)


def test_rows_past_the_length_enter_nothing(generator: torch.Generator) -> None:
    (x, y), _ = draw_states(Shape(2, 9, 5), torch.float32, generator)
    lengths = torch.tensor([4, 99])
    stats = layer_stats(x, y, lengths, with_input=True, backend="triton")
    gram = layer_gram([x, y], lengths, backend="triton")
    x, y = x.clone(), y.clone()
    x[0, 4:], y[0, 4:] = torch.nan, torch.inf
    again = layer_stats(x, y, lengths, with_input=True, backend="triton")
    assert all(torch.equal(one, other) for one, other in zip(again, stats, strict=True))
    again = layer_gram([x, y], lengths, backend="triton")
    assert all(torch.equal(one, other) for one, other in zip(again, gram, strict=True))


def test_a_sequence_has_the_same_bits_alone_and_in_company(generator: torch.Generator) -> None:
    (x, y), _ = draw_states(Shape(3, 140, 33), torch.bfloat16, generator)
    together, alone = (layer_stats(a, b, backend="triton") for a, b in ((x, y), (x[1:2], y[1:2])))
    assert all(torch.equal(one[1:2], other) for one, other in zip(together[:3], alone[:3], strict=True))
    x, y = x[:, :20], y[:, :20]
    together, alone = (layer_gram([a, b], backend="triton") for a, b in ((x, y), (x[1:2], y[1:2])))
    assert all(torch.equal(one[1:2], other) for one, other in zip(together, alone, strict=True))


def test_two_runs_give_the_same_bits(generator: torch.Generator) -> None:
    (x, y), lengths = draw_states(Shape(2, 33, 65, ragged=True), torch.bfloat16, generator)
    for run in (
        lambda: layer_stats(x, y, lengths, with_input=True, backend="triton"),
        lambda: layer_gram([x, y], lengths, backend="triton"),
    ):
        assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))


def test_rows_that_are_not_finite_are_counted(generator: torch.Generator) -> None:
    (x, y), _ = draw_states(Shape(3, 9, 5), torch.float32, generator)
    y[1, 3, 2], y[1, 4, 0], x[2, 0, 0] = torch.nan, torch.inf, -torch.inf
    assert layer_stats(x, y, backend="triton").nonfinite_rows.tolist() == [0, 2, 1]
    assert layer_gram([x, y], backend="triton").counts[..., 1].tolist() == [[0, 0], [0, 2], [1, 0]]


def test_large_halves_do_not_overflow() -> None:
    x = torch.full((1, 2, 64), 60000.0, dtype=torch.float16)
    stats, gram = layer_stats(x, -x, backend="triton"), layer_gram([x, -x], backend="triton")
    assert stats.cosine.item() == pytest.approx(-2, abs=1e-6)
    truth = pytest.approx(-2 * 64 * float(x[0, 0, 0]) ** 2)
    assert stats.dot.item() == truth
    assert gram.dot[0, 0, 1].item() == truth
    assert not stats.nonfinite_rows.any()
    assert not gram.counts.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_operations_agree_with_float64(dtype: torch.dtype, generator: torch.Generator) -> None:
    for w in (
        torch.randn(37, 53, generator=generator).to(dtype),
        torch.randn(5, 80, generator=generator).to(dtype)[:, 2:69],
        torch.randn(3, 70_001, generator=generator).to(dtype),
        torch.zeros(0, 4, dtype=dtype),
    ):
        truth = torch.stack([w.double().abs().sum(), w.double().square().sum()])
        torch.testing.assert_close(weight_norms(w, backend="triton"), truth, rtol=slack(300), atol=0)
        g = torch.randn(w.shape, generator=generator).to(dtype)
        acc = torch.randn(w.shape, generator=generator)
        expected = acc.double() + w.double() * g.double()
        got = weight_salience(w, g, acc, backend="triton")
        torch.testing.assert_close(acc.double(), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(got, expected.abs().sum(), rtol=slack(300), atol=0)
        torch.testing.assert_close(got, acc.double().abs().sum(), rtol=slack(300), atol=0)


@pytest.mark.parametrize("accumulator", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_gram_accumulates_over_chunks(
    dtype: torch.dtype, accumulator: torch.dtype, generator: torch.Generator
) -> None:
    t, k, m = 101, 133, 70
    a = torch.randn(2 * t, k, generator=generator).to(dtype)[::2]
    b = torch.randn(m, t, generator=generator).to(dtype).T
    ata, atb = torch.zeros(k, k, dtype=accumulator), torch.zeros(m, k, dtype=accumulator).T
    for rows in (slice(0, 33), slice(33, 33), slice(33, t)):
        linear_gram(a[rows], b[rows], ata, atb, backend="triton")
    a, b = a.double(), b.double()
    atol = slack(t) * float(a.norm(dim=0).max() * torch.maximum(a.norm(dim=0).max(), b.norm(dim=0).max()))
    torch.testing.assert_close(ata.double(), a.T @ a, rtol=0, atol=atol)
    torch.testing.assert_close(atb.double(), a.T @ b, rtol=0, atol=atol)
    # What multiplies under the interpreter need not round both halves alike.
    torch.testing.assert_close(ata, ata.T, rtol=0, atol=2 * atol)
