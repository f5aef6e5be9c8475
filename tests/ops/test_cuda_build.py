"""What the compiler makes of the CUDA kernels, for each target: no spills, wide loads, tensor cores. No GPU needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.compiled import compiled

CSRC = Path(__file__).parents[2] / "csrc"
TARGETS = ("sm_80", "sm_90a")
STATIC_SHARED_LIMIT = 48 * 1024

NVCC = shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(os.environ.get("CUDA_HOME", ""), "bin"))
pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


class Kernel(NamedTuple):
    """One kernel in the report of ``ptxas -v``; sizes in bytes."""

    name: str
    registers: int
    stack: int
    spills: int
    shared: int


BUILDS = [
    pytest.param((name, target), marks=[pytest.mark.slow] if target == "sm_80" else [], id=f"{name}-{target}")
    for name in ("layer_stats", "layer_gram")
    for target in TARGETS
]


@pytest.fixture(scope="module", params=BUILDS)
def built(request: pytest.FixtureRequest) -> tuple[str, Path, str]:
    """Source, object and the compiler's report; warnings of either compiler are errors."""
    assert NVCC is not None
    name, target = request.param
    architecture = f"arch={target.replace('sm', 'compute')},code={target}"
    flags = ["-std=c++17", "-O3", "-cubin", "-gencode", architecture, "-Xptxas", "-v", "-Werror", "all-warnings"]
    command = [NVCC, *flags, "-Xcompiler", "-Wall,-Wextra,-Werror", CSRC / f"{name}.cu"]
    return name, *compiled(command, CSRC.iterdir(), f"{name}.{target}.cubin")


def kernels(report: str) -> list[Kernel]:
    found = []
    for entry in report.split("Compiling entry function")[1:]:
        numbers = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers, shared = re.search(r"Used (\d+) registers", entry), re.search(r"(\d+) bytes smem", entry)
        name = re.search(r"'(\w+)'", entry)
        assert numbers, entry
        assert registers, entry
        assert name, entry
        stack, stores, loads = map(int, numbers.groups())
        found.append(Kernel(name[1], int(registers[1]), stack, stores + loads, int(shared[1]) if shared else 0))
    return found


@cache
def disassembly(cubin: Path) -> dict[str, str]:
    """Machine code by kernel; skips where there is no cuobjdump (Triton brings one)."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        triton = pytest.importorskip("triton", reason="neither cuobjdump nor triton is installed")
        folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        tool = shutil.which("cuobjdump", path=str(folder))
        os.environ["PATH"] += os.pathsep + str(folder)  # it calls the nvdisasm beside it
    if tool is None:
        pytest.skip("cuobjdump is not installed")
    text = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"Function : (\S+)", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_kernel_fits_its_registers(built: tuple[str, Path, str]) -> None:
    name, _, report = built
    found = kernels(report)
    # Types x loads x with_input, or x sizes, and the two second stages.
    assert len(found) == {"layer_stats": 3 * 2 * 2 + 2, "layer_gram": 3 * 2 * 3 + 2}[name]
    assert {kernel.name for kernel in found if kernel.stack or kernel.spills} == set()
    assert max(kernel.shared for kernel in found) <= STATIC_SHARED_LIMIT


def test_the_main_kernels_leave_room_for_the_warps_they_plan(built: tuple[str, Path, str]) -> None:
    name, _, report = built
    kind, most = {"layer_stats": ("Lb1ELb", 80), "layer_gram": ("Lb1ELi3", 168)}[name]  # 24 warps; 12, up to 48 states
    assert max(kernel.registers for kernel in kernels(report) if kind in kernel.name) <= most


def test_wide_loads_and_tensor_cores_are_there(built: tuple[str, Path, str]) -> None:
    name, cubin, _ = built
    codes = disassembly(cubin)
    wide = {kernel: code for kernel, code in codes.items() if re.search(r"(4Bf16|3F16)ELb1E", kernel)}
    assert len(wide) == {"layer_stats": 4, "layer_gram": 6}[name]
    for kernel, code in wide.items():
        loads, first_use = list(re.finditer(r"LDG\.E\.128", code)), re.search(r"\bFFMA\b|\bHMMA\b", code)
        assert first_use, kernel
        before = sum(load.start() < first_use.start() for load in loads)
        assert before >= 6, f"{kernel}: {before} wide loads are issued before the first product"
    if name == "layer_gram":
        for kernel, code in codes.items():
            if "sum_grams" in kernel:
                kind = "1688.F32.TF32" if "3F32" in kernel else "16816.F32"
                assert re.search(rf"HMMA\.{re.escape(kind)}", code), kernel


def test_no_sum_is_atomic_and_nothing_goes_to_local_memory(built: tuple[str, Path, str]) -> None:
    _, cubin, _ = built
    for kernel, code in disassembly(cubin).items():
        assert not re.search(r"\b(ATOM|ATOMG|ATOMS|RED|LDL|STL)\b", code), kernel
