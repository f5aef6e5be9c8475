"""The back ends of a GPU against float64 truth computed on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from prunecomp.ops import layer_gram, layer_stats, linear_gram, weight_norms, weight_salience
from prunecomp.ops.backends import TABLE, obstacle
from tests.ops.checks import DTYPES, SHAPES, Shape, check_layer_gram, check_layer_stats, draw_states, slack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LARGE = (Shape(2, 513, 4096), Shape(1, 300, 5120, ragged=True), Shape(2, 2049, 1024, strided=True), Shape(1, 65, 8192))
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
GRAM_SHAPES = (
    (Shape(1, 1, 1), 2),
    (Shape(2, 3, 7, ragged=True), 3),
    (Shape(3, 17, 1000, ragged=True, strided=True), 5),
    (Shape(1, 2, 4096), 33),
    (Shape(1, 2, 5120), 41),
    (Shape(1, 1, 8192), 81),
    (Shape(1, 130, 65), 17),
    (Shape(4, 0, 16), 4),
)


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    why_not = obstacle(request.param, "cuda", None)
    if why_not is not None:
        pytest.skip(f"{request.param}: {why_not}")
    return str(request.param)


def offered(backend: str, operation: str) -> None:
    if operation not in TABLE[backend]:
        pytest.skip(f"{backend} leaves {operation} out")


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides, NaN between the rows."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return tensor.cuda()
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    larger = torch.full((span,), torch.nan, dtype=tensor.dtype, device="cuda")
    view = larger.as_strided(tensor.shape, tensor.stride())
    view.copy_(tensor)
    return view


@DTYPE
@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
def test_layer_stats_agree_with_float64(
    shape: Shape, dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    (x, y), lengths = draw_states(shape, dtype, generator)
    for with_input in (False, True):
        got = layer_stats(on_device(x), on_device(y), lengths, with_input=with_input, backend=backend)
        check_layer_stats(got, x, y, lengths, with_input)


@DTYPE
@pytest.mark.parametrize(("shape", "count"), GRAM_SHAPES, ids=str)
def test_layer_gram_agrees_with_float64(
    shape: Shape, count: int, dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    offered(backend, "layer_gram")
    states, lengths = draw_states(shape, dtype, generator, count)
    check_layer_gram(layer_gram([on_device(state) for state in states], lengths, backend=backend), states, lengths)


@pytest.mark.parametrize("count", [33, 81])
def test_layer_gram_agrees_with_the_reference_at_full_size(
    count: int, backend: str, generator: torch.Generator
) -> None:
    offered(backend, "layer_gram")
    states, lengths = draw_states(Shape(2, 333, 4096, ragged=True), torch.bfloat16, generator, count)
    states = [on_device(state) for state in states]
    truth = layer_gram([state.double() for state in states], lengths, backend="reference")
    got = layer_gram(states, lengths, backend=backend)
    tokens = max(int(lengths.max()), 1) if lengths is not None else 333
    torch.testing.assert_close(got.cosine, truth.cosine, rtol=0, atol=tokens * slack(4096))
    torch.testing.assert_close(got.norm_ratio, truth.norm_ratio, rtol=slack(4096), atol=0)
    size = float(truth.dot.abs().max())
    torch.testing.assert_close(got.dot, truth.dot, rtol=0, atol=size * slack(4096))
    assert torch.equal(got.counts, truth.counts)


def test_states_that_are_not_aligned_are_read_right(backend: str, generator: torch.Generator) -> None:
    (x, y), _ = draw_states(Shape(2, 40, 257), torch.bfloat16, generator)
    left, right = on_device(x)[..., 1:], on_device(y)[..., 1:]
    x, y = x[..., 1:], y[..., 1:]
    check_layer_stats(layer_stats(left, right, backend=backend), x, y, None, False)
    offered(backend, "layer_gram")
    check_layer_gram(layer_gram([left, right], backend=backend), [x, y], None)


@DTYPE
def test_two_runs_and_another_stream_give_the_same_bits(
    dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    states, lengths = draw_states(Shape(4, 700, 1024, ragged=True), dtype, generator, 5)
    states = [on_device(state) for state in states]
    runs: list[Callable[[], tuple[torch.Tensor, ...]]] = [
        lambda: layer_stats(states[0], states[1], lengths, with_input=True, backend=backend)
    ]
    if "layer_gram" in TABLE[backend]:
        runs.append(lambda: layer_gram(states, lengths, backend=backend))
    for run in runs:
        first, second = run(), run()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            third = run()
        stream.synchronize()
        for one, two, three in zip(first, second, third, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)


def test_a_sequence_has_the_same_bits_alone_and_in_company(backend: str, generator: torch.Generator) -> None:
    (x, y), _ = draw_states(Shape(3, 300, 512), torch.bfloat16, generator)
    x, y = on_device(x), on_device(y)
    together, alone = layer_stats(x, y, backend=backend), layer_stats(x[1:2], y[1:2], backend=backend)
    assert all(torch.equal(one[1:2], other) for one, other in zip(together[:3], alone[:3], strict=True))
    offered(backend, "layer_gram")
    together, alone = layer_gram([x, y], backend=backend), layer_gram([x[1:2], y[1:2]], backend=backend)
    assert all(torch.equal(one[1:2], other) for one, other in zip(together, alone, strict=True))


@DTYPE
def test_weight_operations_agree_with_float64(dtype: torch.dtype, backend: str, generator: torch.Generator) -> None:
    offered(backend, "weight_norms")
    for rows, cols in ((37, 53), (1024, 4096), (3, 1_000_001)):
        w, g = (torch.randn(rows, cols, generator=generator).to(dtype).cuda() for _ in range(2))
        truth = torch.stack([w.double().abs().sum(), w.double().square().sum()])
        torch.testing.assert_close(weight_norms(w, backend=backend), truth, rtol=slack(300), atol=0)
        part = w[:, 1:-1]
        truth = torch.stack([part.double().abs().sum(), part.double().square().sum()])
        torch.testing.assert_close(weight_norms(part, backend=backend), truth, rtol=slack(300), atol=0)
        offered(backend, "weight_salience")
        acc = torch.randn(rows, cols, generator=generator).cuda()
        expected = acc.double() + w.double() * g.double()
        got = weight_salience(w, g, acc, backend=backend)
        torch.testing.assert_close(acc.double(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got, acc.double().abs().sum(), rtol=slack(300), atol=0)


@pytest.mark.parametrize("accumulator", [torch.float32, torch.float64], ids=str)
@DTYPE
def test_linear_gram_accumulates_over_chunks(
    dtype: torch.dtype, accumulator: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    offered(backend, "linear_gram")
    t, k, m = 1000, 513, 320
    a, b = (torch.randn(t, width, generator=generator).to(dtype).cuda() for width in (k, m))
    ata, atb = (torch.zeros(k, width, dtype=accumulator, device="cuda") for width in (k, m))
    for rows in (slice(0, 333), slice(333, t)):
        linear_gram(a[rows], b[rows], ata, atb, backend=backend)
    a, b = a.double(), b.double()
    atol = 2 * slack(t) * float(a.norm(dim=0).max() * torch.maximum(a.norm(dim=0).max(), b.norm(dim=0).max()))
    torch.testing.assert_close(ata.double(), a.T @ a, rtol=0, atol=atol)
    torch.testing.assert_close(atb.double(), a.T @ b, rtol=0, atol=atol)


def test_empty_inputs_launch_nothing(backend: str) -> None:
    empty = torch.empty(0, 5, 8, device="cuda")
    assert layer_stats(empty, empty, backend=backend).sums.shape == (0, 8)
    offered(backend, "layer_gram")
    assert layer_gram([empty, empty], backend=backend).cosine.shape == (0, 2, 2)


@DTYPE
def test_bits_of_a_sequence_do_not_depend_on_how_many_come_together(
    dtype: torch.dtype, backend: str, generator: torch.Generator
) -> None:
    """So many that they would fill a card with larger blocks than one sequence would."""
    together = [torch.randn(600, 33, 64, generator=generator).to("cuda", dtype) for _ in range(2)]
    alone = [state[7:8].clone() for state in together]
    for all_of_them, one in (
        (layer_stats(*together, backend=backend), layer_stats(*alone, backend=backend)),
        (layer_gram(together, backend=backend), layer_gram(alone, backend=backend)),
    ):
        for many, single in zip(all_of_them, one, strict=True):
            assert torch.equal(many[7:8], single) or not single.numel()
