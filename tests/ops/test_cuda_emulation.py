"""The CUDA kernels, run thread by thread on the CPU: the sources of ``csrc/`` compiled as C++ against a small emulated
device, called as :mod:`prunecomp.ops.cuda` calls them, and held to what every other back end is held to."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from prunecomp.errors import BackendError
from prunecomp.ops import LayerGram, LayerStats, cuda, libraries
from tests.compiled import compiled
from tests.ops.checks import DTYPES, SHAPES, Shape, check_layer_gram, check_layer_stats, draw_states

ROOT = Path(__file__).parents[2]
EMULATION = Path(__file__).parent / "cuda_emulation"
SOURCES = [ROOT / "csrc" / "layer_stats.cu", ROOT / "csrc" / "layer_gram.cu", EMULATION / "checks.cpp"]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

# Where the kernels change their ways: narrow and wide loads, one warp and several, rows over many blocks, and for
# states the small kernel, the large one, and the one of four roles without and with a last role.
STATS_SHAPES = [*SHAPES, Shape(2, 40, 520, ragged=True), Shape(1, 9, 8200), Shape(1, 300, 16)]
GRAM_SHAPES = [(shape, 4) for shape in SHAPES if shape.s < 257 and shape.d < 4097] + [
    (Shape(1, 2, 4097), 3),
    (Shape(2, 5, 200, ragged=True), 33),
    (Shape(1, 3, 72), 49),
    (Shape(1, 2, 40), 81),
    (Shape(1, 2, 33), 128),
]


@pytest.fixture(scope="module")
def emulated() -> ctypes.CDLL:
    warnings = "-Wall -Wextra -Werror -Wno-unknown-pragmas"
    # Fortified jumps take the stacks of the emulated threads for an error.
    flags = f"-x c++ -std=c++17 -O2 -fPIC -shared {warnings} -U_FORTIFY_SOURCE -DPC_EMULATED".split()
    includes = [f"-I{EMULATION}", f"-I{ROOT / 'csrc'}"]
    sources = [*(ROOT / "csrc").iterdir(), *EMULATION.iterdir()]
    library, _ = compiled(["g++", *flags, *includes, *SOURCES], sources, "libprunecomp_cuda.so")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libraries, "FOLDER", library.parent)
        functions = libraries.load.__wrapped__("prunecomp_cuda").functions
    assert functions is not None
    return functions


@pytest.fixture(autouse=True)
def on_the_emulated_device(emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "check_shared_memory", lambda device, states: None)  # it has as much as is asked for

    @contextlib.contextmanager
    def queue(device: torch.device) -> Iterator[int]:
        yield 0

    monkeypatch.setattr(cuda, "_queue", queue)
    monkeypatch.setattr(cuda, "require", lambda name, remedy: emulated)


def stats(emulated: ctypes.CDLL, x: torch.Tensor, y: torch.Tensor, lengths: torch.Tensor | None) -> LayerStats:
    return LayerStats(*in_two_orders(emulated, lambda: cuda.layer_stats(x, y, lengths, True)))


def gram(emulated: ctypes.CDLL, states: list[torch.Tensor], lengths: torch.Tensor | None) -> LayerGram:
    sums, counts = in_two_orders(emulated, lambda: cuda.layer_gram(states, lengths))
    return LayerGram(*sums.unbind(), counts)


def in_two_orders(emulated: ctypes.CDLL, call: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """The order in which threads run must not show in a single bit."""
    emulated.pc_emulated_seed(0)
    first = call()
    emulated.pc_emulated_seed(13)
    torch.testing.assert_close(call(), first, rtol=0, atol=0, equal_nan=True)
    return first


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", STATS_SHAPES, ids=str)
def test_layer_stats(shape: Shape, dtype: torch.dtype, emulated: ctypes.CDLL, generator: torch.Generator) -> None:
    (x, y), lengths = draw_states(shape, dtype, generator)
    got = stats(emulated, x, y, lengths)
    check_layer_stats(got, x, y, lengths, with_input=True)
    without = LayerStats(*cuda.layer_stats(x, y, lengths, False))
    assert torch.equal(without.sums, got.sums)
    assert torch.equal(without.magnitude, got.magnitude)
    assert without.input_magnitude.shape == (0, shape.d)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "m"), GRAM_SHAPES, ids=str)
def test_layer_gram(
    shape: Shape, m: int, dtype: torch.dtype, emulated: ctypes.CDLL, generator: torch.Generator
) -> None:
    states, lengths = draw_states(shape, dtype, generator, count=m)
    got = gram(emulated, states, lengths)
    check_layer_gram(got, states, lengths)
    for name in ("cosine", "angular", "dot"):
        assert torch.equal(getattr(got, name), getattr(got, name).mT)


@pytest.mark.parametrize("dtype", DTYPES)
def test_states_off_their_alignment_give_what_aligned_ones_give(
    dtype: torch.dtype, emulated: ctypes.CDLL, generator: torch.Generator
) -> None:
    states, _ = draw_states(Shape(1, 6, 64), dtype, generator, count=5)
    moved = []
    for state in states:
        store = torch.full((state.numel() + 1,), torch.nan, dtype=dtype)
        moved.append(store[1:].view(state.shape))
        moved[-1].copy_(state)
    check_layer_gram(gram(emulated, moved, None), states, None)
    check_layer_gram(gram(emulated, [*states[:4], moved[4]], None), states, None)
    check_layer_stats(stats(emulated, moved[0], states[1], None), *states[:2], None, with_input=True)


def test_rows_past_the_length_enter_nothing(emulated: ctypes.CDLL, generator: torch.Generator) -> None:
    states, _ = draw_states(Shape(3, 9, 16), torch.bfloat16, generator, count=3)
    lengths = torch.tensor([4, -3, 99])
    clean = stats(emulated, *states[:2], lengths), gram(emulated, states, lengths)
    for state in states:
        state[0, 4:], state[1] = torch.nan, torch.inf
    dirty = stats(emulated, *states[:2], lengths), gram(emulated, states, lengths)
    for one, other in zip((*clean[0], *clean[1]), (*dirty[0], *dirty[1]), strict=True):
        assert torch.equal(one, other)
        assert not one[1].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_not_finite_are_counted(
    dtype: torch.dtype, emulated: ctypes.CDLL, generator: torch.Generator
) -> None:
    (x, y), _ = draw_states(Shape(3, 9, 24), dtype, generator)
    y[1, 3, 2], y[1, 4, 0], x[1, 4], x[2, 0, 0] = torch.nan, torch.inf, 0.0, -torch.inf
    assert stats(emulated, x, y, None).nonfinite_rows.tolist() == [0, 2, 1]
    assert gram(emulated, [x, y], None).counts[..., 1].tolist() == [[0, 0], [0, 2], [1, 0]]


def test_more_states_than_the_kernel_holds_are_refused() -> None:
    with pytest.raises(BackendError, match="128 at most"):
        cuda.layer_gram([torch.zeros(1, 1, 8)] * 129, None)


def test_the_tiles_hold_every_pair_once(emulated: ctypes.CDLL) -> None:
    assert {m: emulated.pc_check_tiles(m) for m in range(1, 129)} == dict.fromkeys(range(1, 129), 0)


def test_the_blocks_hold_every_row_once(emulated: ctypes.CDLL, generator: torch.Generator) -> None:
    check = emulated.pc_check_rows
    check.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 3]
    for n, s in [(1, 0), (1, 1), (3, 15), (2, 16), (2, 17), (5, 128), (4, 1000), (7, 2048), (300, 129)]:
        lengths = torch.randint(-2, s + 3, (n,), generator=generator)
        for wanted in (1, 100, 1584):
            assert check(n, s, lengths.data_ptr(), 4, 64, wanted) == 0
            assert check(n, s, None, 16, 128, wanted) == 0


def test_the_lanes_of_a_team_read_every_channel_once(emulated: ctypes.CDLL) -> None:
    assert emulated.pc_check_channels() == 0
