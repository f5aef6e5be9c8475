"""The reference itself against float64 truth; its own error is the allowance of the others, so it is bounded here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunecomp.errors import BackendError, OptionError
from prunecomp.ops import layer_gram, layer_stats, library, linear_gram, weight_norms, weight_salience
from tests.ops.checks import DTYPES, SHAPES, Shape, draw_states, slack
from tests.oracles import statistics


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_stats_agree_with_float64(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> None:
    (x, y), lengths = draw_states(shape, dtype, generator)
    got = layer_stats(x, y, lengths, with_input=True, backend="reference")
    truth = statistics.layer_stats(x, y, lengths)
    tokens = shape.n * shape.s * slack(shape.d)
    products = float((x.double().norm(dim=-1) * y.double().norm(dim=-1)).sum()) * slack(shape.d)
    np.testing.assert_allclose(got.cosine, truth["cosine"], rtol=0, atol=tokens)
    np.testing.assert_allclose(got.angular, truth["angular"], rtol=0, atol=shape.s * (2 * slack(shape.d)) ** 0.5)
    np.testing.assert_allclose(got.dot, truth["dot"], rtol=0, atol=products)
    for name in ("input_square", "square", "input_norm", "norm", "norm_ratio", "magnitude", "input_magnitude"):
        np.testing.assert_allclose(getattr(got, name), truth[name], rtol=slack(shape.d), err_msg=name)
    for name in ("zero_rows", "zero_input_rows"):
        np.testing.assert_array_equal(getattr(got, name), truth[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s.s < 100 and s.d < 4097], ids=str)
def test_layer_gram_agrees_with_float64(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> None:
    states, lengths = draw_states(shape, dtype, generator, count=4)
    got = layer_gram(states, lengths, backend="reference")
    truth = statistics.layer_gram(states, lengths)
    np.testing.assert_allclose(got.cosine, truth["cosine"], rtol=0, atol=max(shape.s, 1) * slack(shape.d))
    np.testing.assert_allclose(
        got.angular, truth["angular"], rtol=0, atol=max(shape.s, 1) * (2 * slack(shape.d)) ** 0.5
    )
    np.testing.assert_allclose(got.norm_ratio, truth["norm_ratio"], rtol=slack(shape.d))
    size = np.abs(truth["dot"]).max(initial=0.0)
    np.testing.assert_allclose(got.dot, truth["dot"], rtol=0, atol=slack(shape.d) * size)
    np.testing.assert_array_equal(got.counts[..., 0], truth["zero_rows"])


def test_rows_past_the_length_enter_nothing(generator: torch.Generator) -> None:
    (x, y), _ = draw_states(Shape(2, 9, 5), torch.float32, generator)
    lengths = torch.tensor([4, 9])
    expected = layer_stats(x, y, lengths, with_input=True)
    x, y = x.clone(), y.clone()
    x[0, 4:], y[0, 4:] = torch.nan, torch.inf
    got = layer_stats(x, y, lengths, with_input=True)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)
    past = layer_stats(x[:1, :4], y[:1, :4], torch.tensor([99]), with_input=True)
    assert torch.equal(past.sums[0], expected.sums[0])


def test_rows_that_are_not_finite_are_counted(generator: torch.Generator) -> None:
    (x, y), _ = draw_states(Shape(3, 9, 5), torch.float32, generator)
    y[1, 3, 2], y[1, 4, 0], x[2, 0, 0] = torch.nan, torch.inf, -torch.inf
    assert layer_stats(x, y).nonfinite_rows.tolist() == [0, 2, 1]
    assert layer_gram([x, y]).counts[..., 1].tolist() == [[0, 0], [0, 2], [1, 0]]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_weight_operations_agree_with_float64(dtype: torch.dtype, generator: torch.Generator) -> None:
    w = torch.randn(37, 53, generator=generator).to(dtype)
    g = torch.randn(37, 53, generator=generator).to(dtype)
    truth = [float(w.double().abs().sum()), float(w.double().square().sum())]
    np.testing.assert_allclose(weight_norms(w, backend="reference"), truth, rtol=slack(53))
    assert weight_norms(w, p=(2,), backend="reference").tolist() == weight_norms(w, backend="reference").tolist()[1:]
    acc = torch.zeros(37, 53)
    weight_salience(w, g, acc, backend="reference")
    got = weight_salience(w, g, acc, backend="reference")
    expected = 2 * (w.double() * g.double())
    np.testing.assert_allclose(acc, expected, rtol=slack(1), atol=1e-30)
    assert float(got) == pytest.approx(float(expected.abs().sum()), rel=slack(1))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_linear_gram_accumulates_over_chunks(dtype: torch.dtype, generator: torch.Generator) -> None:
    a = torch.randn(100, 13, generator=generator).to(dtype)
    b = torch.randn(100, 7, generator=generator).to(dtype)
    ata, atb = torch.zeros(13, 13, dtype=torch.float64), torch.zeros(13, 7, dtype=torch.float64)
    for rows in (slice(0, 33), slice(33, 33), slice(33, 100)):
        linear_gram(a[rows], b[rows], ata, atb, backend="reference")
    size = float(a.double().norm() * b.double().norm())
    np.testing.assert_allclose(atb, a.double().T @ b.double(), rtol=0, atol=slack(100) * size)
    np.testing.assert_allclose(ata, a.double().T @ a.double(), rtol=0, atol=slack(100) * float(a.double().norm() ** 2))


@pytest.mark.parametrize("with_input", [False, True])
@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 0])])
def test_operations_pass_opcheck(generator: torch.Generator, with_input: bool, lengths: torch.Tensor | None) -> None:
    x, y = torch.randn(2, 5, 6, generator=generator), torch.randn(2, 5, 6, generator=generator)
    torch.library.opcheck(library.layer_stats, (x, y, lengths, with_input, ""))
    torch.library.opcheck(library.layer_gram, ([x, y, x], lengths, ""))
    torch.library.opcheck(library.weight_norms, (x[0], ""))
    torch.library.opcheck(library.weight_salience, (x, y, torch.zeros_like(x), ""))
    torch.library.opcheck(library.linear_gram, (x[0], y[0], torch.zeros(6, 6), torch.zeros(6, 6), ""))


def test_operations_compile_without_a_graph_break(generator: torch.Generator) -> None:
    (x, y), _ = draw_states(Shape(2, 7, 12), torch.float32, generator)

    def double(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return library.layer_stats(x * 2, y * 2, None, False, "reference")[0]

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, y), double(x, y))


def test_arguments_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2, 3, 4)
    for call in (
        lambda: layer_stats(x, x[:1]),
        lambda: layer_stats(x, x.half()),
        lambda: layer_stats(x[0], x[0]),
        lambda: layer_stats(x, x, torch.tensor([1])),
        lambda: layer_stats(x.long(), x.long()),
        lambda: layer_gram([]),
        lambda: layer_gram([x, x[:, :1]]),
        lambda: weight_norms(x, p=(3,)),
        lambda: weight_salience(x, x, torch.zeros(4, 3, 2).mT),
        lambda: linear_gram(x[0], x[0], torch.zeros(3, 3), torch.zeros(4, 4)),
    ):
        with pytest.raises(OptionError):
            call()
    with pytest.raises(BackendError, match="choose auto, reference, native, triton, cuda"):
        layer_stats(x, x, backend="magic")
    monkeypatch.setenv("PRUNECOMP_BACKEND", "cuda")
    with pytest.raises(BackendError, match="cannot run layer_stats on cpu"):
        layer_stats(x, x)
