"""The C++ back end against float64 truth, in every variant that this processor runs, and to the bit across threads."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecomp.errors import BackendError
from prunecomp.ops import layer_gram, layer_stats, libraries, native, weight_norms, weight_salience
from tests.ops.checks import DTYPES, SHAPES, Shape, check_layer_gram, check_layer_stats, draw_states, slack, spread

pytestmark = pytest.mark.skipif(native.obstacle("cpu") is not None, reason=str(native.obstacle("cpu")))

THREADS = (1, 2, 3, 7)
LARGE = Shape(3, 700, 1030, ragged=True)
"""Enough for several blocks a sequence and for four threads to be worth their start."""


def variants_here() -> list[str]:
    """Those that this processor runs; all tests are skipped where there is no library."""
    functions = libraries.load(native.LIBRARY).functions
    if functions is None:
        return ["none"]
    names = [name for name in ("avx512", "avx2", "baseline", "neon") if not functions.pc_cpu_set_variant(name.encode())]
    functions.pc_cpu_set_variant(None)
    return names


VARIANTS = variants_here()


def test_the_best_variant_is_chosen() -> None:
    assert native.variant() == VARIANTS[0]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    functions = libraries.load(native.LIBRARY).functions
    assert functions is not None
    assert functions.pc_cpu_set_variant(request.param.encode()) == 0
    assert native.variant() == request.param
    yield request.param
    functions.pc_cpu_set_variant(None)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_stats_agree_with_float64(
    shape: Shape, dtype: torch.dtype, variant: str, generator: torch.Generator
) -> None:
    (x, y), lengths = draw_states(shape, dtype, generator)
    for with_input in (False, True):
        got = layer_stats(x, y, lengths, with_input=with_input, backend="native")
        check_layer_stats(got, x, y, lengths, with_input)


def test_layer_gram_takes_rows_longer_than_a_chunk(variant: str, generator: torch.Generator) -> None:
    states, lengths = draw_states(Shape(2, 5, 1541, ragged=True), torch.float16, generator, count=5)
    check_layer_gram(layer_gram(states, lengths, backend="native"), states, lengths)


@settings(max_examples=200)
@given(
    n=st.integers(1, 4),
    s=st.integers(0, 140),
    d=st.integers(1, 80),
    ragged=st.booleans(),
    strided=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    count=st.integers(1, 7),
    name=st.sampled_from(VARIANTS),
    seed=st.integers(0, 2**31),
)
def test_any_shape(
    n: int, s: int, d: int, ragged: bool, strided: bool, dtype: torch.dtype, count: int, name: str, seed: int
) -> None:
    functions = libraries.load(native.LIBRARY).functions
    assert functions is not None
    functions.pc_cpu_set_variant(name.encode())
    try:
        shape = Shape(n, s, d, ragged, strided)
        states, lengths = draw_states(shape, dtype, torch.Generator().manual_seed(seed), count)
        got = layer_stats(states[0], states[-1], lengths, with_input=bool(seed % 2), backend="native")
        check_layer_stats(got, states[0], states[-1], lengths, bool(seed % 2))
        check_layer_gram(layer_gram(states, lengths, backend="native"), states, lengths)
    finally:
        functions.pc_cpu_set_variant(None)


@pytest.mark.parametrize("lengths", [None, torch.tensor([700, 0, 333])], ids=["full", "ragged"])
def test_the_number_of_threads_leaves_no_trace(
    variant: str, lengths: torch.Tensor | None, threads: None, generator: torch.Generator
) -> None:
    states, _ = draw_states(LARGE, torch.bfloat16, generator, count=4)
    w = torch.randn(3, 1_000_003, generator=generator)
    results = []
    for count in (*THREADS, *THREADS):
        torch.set_num_threads(count)
        acc = torch.zeros_like(w)
        results.append(
            [
                *layer_stats(states[0], states[1], lengths, with_input=True, backend="native"),
                *layer_gram(states, lengths, backend="native"),
                weight_norms(w, backend="native"),
                weight_salience(w, w, acc, backend="native"),
                acc,
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_a_large_sequence_agrees_with_float64(variant: str, threads: None, generator: torch.Generator) -> None:
    torch.set_num_threads(3)
    (x, y), lengths = draw_states(LARGE, torch.float32, generator)
    check_layer_stats(layer_stats(x, y, lengths, with_input=True, backend="native"), x, y, lengths, True)


@pytest.mark.parametrize("shape", [Shape(3, 5, 7), Shape(2, 0, 4), Shape(2, 300, 33, ragged=True)], ids=str)
def test_every_output_is_written(shape: Shape, variant: str, generator: torch.Generator) -> None:
    states, lengths = draw_states(shape, torch.float32, generator)
    n, s, d = states[0].shape
    functions = libraries.load(native.LIBRARY).functions
    assert functions is not None
    sums, magnitude, gram = (
        torch.full(size, torch.nan, dtype=torch.float64) for size in ((n, 8), (2, n, d), (4, n, 4))
    )
    counts, gram_counts = (torch.full(size, -(2**40)) for size in ((n, 3), (n, 2, 2)))
    rows = [argument for state in states for argument in (state.data_ptr(), state.stride(0), state.stride(1))]
    limit = None if lengths is None else lengths.data_ptr()
    assert not functions.pc_cpu_layer_stats(
        *(*rows, 0, n, s, d, limit, sums.data_ptr(), counts.data_ptr()),
        *(magnitude[0].data_ptr(), magnitude[1].data_ptr(), 2),
    )
    pointers = (ctypes.c_void_p * 2)(*(state.data_ptr() for state in states))
    assert not functions.pc_cpu_layer_gram(
        *(pointers, 2, states[0].stride(0), states[0].stride(1)),
        *(0, n, s, d, limit, gram.data_ptr(), gram_counts.data_ptr(), 2),
    )
    assert not any(tensor.isnan().any() for tensor in (sums, magnitude, gram))
    assert (counts >= 0).all()
    assert (gram_counts >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_not_finite_are_counted(dtype: torch.dtype, variant: str, generator: torch.Generator) -> None:
    (x, y), _ = draw_states(Shape(4, 150, 37), dtype, generator)
    y[1, 3, 2], y[1, 140, 36], x[2, 0, 0], x[3, 1], y[3, 1, 5] = torch.nan, torch.inf, -torch.inf, 0.0, torch.nan
    expected = layer_stats(x, y, backend="reference")
    got = layer_stats(x, y, backend="native")
    assert got.nonfinite_rows.tolist() == [0, 2, 1, 1]
    assert torch.equal(got.counts, expected.counts)
    counts = layer_gram([x, y], backend="native").counts
    assert counts[..., 1].tolist() == [[0, 0], [0, 2], [1, 0], [0, 1]]


def test_rows_past_the_length_are_not_read(variant: str, generator: torch.Generator) -> None:
    (x, y), _ = draw_states(Shape(2, 300, 5), torch.float32, generator)
    lengths = torch.tensor([140, -3])
    expected = layer_stats(x, y, lengths, with_input=True, backend="native")
    x[0, 140:], y[0, 140:], x[1] = torch.nan, torch.inf, torch.nan
    for one, other in zip(layer_stats(x, y, lengths, with_input=True, backend="native"), expected, strict=True):
        assert torch.equal(one, other)
    assert not expected.sums[1].any()


def test_subnormal_and_extreme_halves(variant: str) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = every.view(dtype)
        values = values[values.isfinite()].reshape(1, 1, -1)
        one = torch.ones_like(values)
        got = layer_stats(values, one, with_input=True, backend="native").input_magnitude
        assert torch.equal(got[0], values[0, 0].double().abs())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1), (37, 53), (3, 70001), (5, 0), (1, 300_001)], ids=str)
def test_weight_norms_agree_with_float64(
    size: tuple[int, int], dtype: torch.dtype, variant: str, generator: torch.Generator
) -> None:
    w = torch.randn(size, generator=generator).to(dtype)
    shifted = torch.empty(w.numel() + 1, dtype=dtype)[1:].view(size).copy_(w)  # off by one element
    strided = spread(w[None])[0]
    truth = [float(w.double().abs().sum()), float(w.double().square().sum())]
    for matrix in (w, shifted, strided):
        np.testing.assert_allclose(weight_norms(matrix, backend="native"), truth, rtol=slack(64))


@settings(max_examples=100)
@given(
    count=st.sampled_from([0, 1, 63, 4097, 300_001]) | st.integers(0, 5000),
    w_dtype=st.sampled_from(DTYPES),
    g_dtype=st.sampled_from(DTYPES),
    name=st.sampled_from(VARIANTS),
    seed=st.integers(0, 2**31),
)
def test_weight_salience_agrees_with_float64(
    count: int, w_dtype: torch.dtype, g_dtype: torch.dtype, name: str, seed: int
) -> None:
    functions = libraries.load(native.LIBRARY).functions
    assert functions is not None
    functions.pc_cpu_set_variant(name.encode())
    try:
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(count + 1, generator=generator).to(w_dtype)[1:]
        g = torch.randn(count + 1, generator=generator).to(g_dtype)[1:]
        acc = torch.randn(count + 3, generator=generator)
        before, guard = acc.clone(), acc[-2:].clone()
        got = weight_salience(w, g, acc[1:-2], backend="native")
        expected = before[1:-2].double() + w.double() * g.double()
        np.testing.assert_allclose(acc[1:-2], expected, rtol=slack(1), atol=1e-6)
        np.testing.assert_allclose(got, acc[1:-2].double().abs().sum(), rtol=slack(64))
        assert torch.equal(acc[-2:], guard)
        assert acc[0] == before[0]
    finally:
        functions.pc_cpu_set_variant(None)


def test_float64_goes_to_the_reference_and_is_refused_by_name() -> None:
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    assert torch.equal(layer_stats(x, x).sums, layer_stats(x, x, backend="reference").sums)
    with pytest.raises(BackendError, match="not float64"):
        layer_stats(x, x, backend="native")


def test_a_missing_library_warns_once_and_the_reference_runs() -> None:
    program = """
import warnings, pathlib, torch
from prunecomp.ops import layer_stats, libraries
libraries.FOLDER = pathlib.Path("nowhere")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    x = torch.ones(1, 2, 3)
    print(layer_stats(x, x).cosine.tolist(), layer_stats(x, x.clone()).cosine.tolist())
print([str(warning.message) for warning in caught if "native" in str(warning.message)])
try:
    layer_stats(x, x, backend="native")
except Exception as error:
    print(type(error).__name__, error)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PRUNECOMP_BACKEND"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    values, caught, refusal = done.stdout.splitlines()
    assert values == "[2.0] [2.0]"
    assert caught.count("libprunecomp_cpu.so was not built") == 1
    assert "C++17 compiler" in caught
    assert refusal.startswith("BackendError")
