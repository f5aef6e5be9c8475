"""Kernels compiled for sm_80 and sm_90 at the launches of real models: they fit, spill nothing, load 16 bytes wide."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton", reason="install prunecomp[triton]")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from prunecomp.kernels import launch, layer_gram, layer_stats, linear_gram, weight_norms, weight_salience
from tests.compiled import FOLDER
from tests.ops.ahead_of_time import SHARED_LIMIT, Compiled, compile_launches, states

WIDE_LOAD = re.compile(r"ld\.global\S*\.v4|cp\.async\.cg\.shared\.global .*, 0x10")
MATRIX = re.compile(r"mma\.sync|wgmma\.mma_async")
HIDDEN_SIZES = (4096, 5120, 8192)
CAPABILITIES = pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
DTYPES = pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, *(pytest.param(other, marks=pytest.mark.slow) for other in (torch.float16, torch.float32))],
)


@pytest.fixture(autouse=True, scope="module")
def own_cache() -> Iterator[None]:
    """No kernel comes from a user's cache, and of an earlier session only what the same sources gave."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(FOLDER / "triton"))
        yield


def check(kernels: dict[str, Compiled], capability: int) -> None:
    for kernel in kernels.values():
        assert kernel.shared <= SHARED_LIMIT[capability], f"{kernel.name} needs {kernel.shared} bytes of shared memory"
        assert kernel.spill_bytes == 0, f"{kernel.name} spills {kernel.spill_bytes} bytes"
        assert kernel.registers * kernel.num_warps * 32 <= 65536


@CAPABILITIES
@DTYPES
def test_layer_stats_fit_and_load_wide(dtype: torch.dtype, capability: int) -> None:
    for d in HIDDEN_SIZES if dtype == torch.bfloat16 else HIDDEN_SIZES[:1]:
        for with_input in (False, True):
            x, y = states(2, d, dtype)
            kernels = compile_launches(capability, layer_stats.layer_stats, x, y, None, with_input)
            check(kernels, capability)
            assert WIDE_LOAD.search(kernels["_slab"].ptx)
            assert not re.search(r"ld\.global\S*\.[bu]16", kernels["_slab"].ptx), "some loads are narrow"


@CAPABILITIES
@pytest.mark.parametrize(
    ("dtype", "ragged"),
    [
        (torch.bfloat16, False),
        pytest.param(torch.bfloat16, True, marks=pytest.mark.slow),
        pytest.param(torch.float16, False, marks=pytest.mark.slow),
        pytest.param(torch.float32, False, marks=pytest.mark.slow),
    ],
)
def test_layer_gram_fits_and_uses_tensor_cores(dtype: torch.dtype, ragged: bool, capability: int) -> None:
    lengths = torch.empty(8, dtype=torch.int64, device="meta") if ragged else None
    tiles: set[tuple[int, bool]] = set()
    for count in (8, 29, 33, 41, 81):
        plan = launch.layer_gram(count, 4096, dtype.itemsize)
        if (plan.tile, count > plan.tile) in tiles:
            continue  # one specialisation
        tiles.add((plan.tile, count > plan.tile))
        kernels = compile_launches(capability, layer_gram.layer_gram, states(count, 4096, dtype), lengths)
        check(kernels, capability)
        assert WIDE_LOAD.search(kernels["_tile_pair"].ptx)
        assert bool(MATRIX.search(kernels["_tile_pair"].ptx)) == (dtype != torch.float32)


def test_layer_gram_plans_differ_with_the_hidden_size_only_in_what_fits() -> None:
    for count in (33, 41, 81):
        assert len({launch.layer_gram(count, d, 2) for d in HIDDEN_SIZES}) == 1


@CAPABILITIES
@DTYPES
def test_weight_kernels_fit_and_load_wide(dtype: torch.dtype, capability: int) -> None:
    w = torch.empty(4096, 14336, dtype=dtype, device="meta")
    acc = torch.empty(4096, 14336, device="meta")
    for kernels in (
        compile_launches(capability, weight_norms.weight_norms, w),
        compile_launches(capability, weight_salience.weight_salience, w, w, acc),
    ):
        check(kernels, capability)
        assert all(WIDE_LOAD.search(kernel.ptx) for kernel in kernels.values())


@CAPABILITIES
@DTYPES
def test_linear_gram_fits_and_uses_tensor_cores(dtype: torch.dtype, capability: int) -> None:
    a, b = (torch.empty(16384, width, dtype=dtype, device="meta") for width in (4096, 2048))
    ata, atb = torch.empty(4096, 4096, device="meta"), torch.empty(4096, 2048, device="meta")
    kernels = compile_launches(capability, linear_gram.linear_gram, a, b, ata, atb)
    check(kernels, capability)
    assert bool(MATRIX.search(kernels["_product"].ptx)) == (dtype != torch.float32)


def test_shapes_of_one_and_odd_strides_compile() -> None:
    """Triton makes constants of arguments that are 1, and these have no ``.to``."""
    capability = 90
    for n, s, d in ((1, 1, 1), (2, 1, 4096)):
        x, y = (torch.empty(n, s, d, dtype=torch.bfloat16, device="meta") for _ in range(2))
        lengths = torch.empty(n, dtype=torch.int64, device="meta")
        assert len(compile_launches(capability, layer_stats.layer_stats, x, y, lengths, True)) == 3
        assert len(compile_launches(capability, layer_gram.layer_gram, [x, y][:n], lengths)) == 2
    w, acc = torch.empty(1, 1, dtype=torch.float16, device="meta"), torch.empty(1, 1, device="meta")
    assert compile_launches(capability, weight_norms.weight_norms, w)
    assert compile_launches(capability, weight_salience.weight_salience, w, w, acc)
    assert compile_launches(capability, linear_gram.linear_gram, w, w, acc, acc.clone())
