"""Kernels compiled for a GPU that is not here: the launchers run on meta tensors, and every launch only compiles.

So signature, alignment and launch options are those of a real launch, by construction.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tests.compiled import FOLDER, compiled

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


@dataclass(frozen=True)
class Compiled:
    """One kernel as compiled: what ptxas says of it, and its PTX."""

    name: str
    shared: int
    registers: int
    spill_bytes: int
    num_warps: int
    ptx: str


class AbsentDriver:
    """Stands for the driver of a GPU of the given compute capability (80, 90)."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compile_only(capability: int, compiled: list[Any]) -> Iterator[None]:
    """Every launch inside compiles for ``capability``, appends its kernel to ``compiled`` and runs nothing."""
    run = JITFunction.run

    def warm_up(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled.append(run(self, *args, grid=grid, warmup=True, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", warm_up)
        driver.set_active(AbsentDriver(capability))
        try:
            yield
        finally:
            driver.set_active(None)  # the next use looks for the real one


def compile_launches(capability: int, launcher: Callable[..., Any], *args: Any) -> dict[str, Compiled]:
    """What ``launcher(*args)`` launches, by kernel name."""
    kernels: list[Any] = []
    with compile_only(capability, kernels):
        launcher(*args)
    return {kernel.name: _measure(kernel, capability) for kernel in kernels}


def _measure(kernel: Any, capability: int) -> Compiled:
    ptx = kernel.asm["ptx"]
    architecture = "sm_90a" if capability == 90 else f"sm_{capability}"
    source = FOLDER / "ptx" / f"{hashlib.sha256(ptx.encode()).hexdigest()[:20]}.ptx"
    if not source.exists():
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(ptx)
    _, report = compiled([PTXAS, "-v", f"-arch={architecture}", source], [source], "kernel.cubin")
    spills = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", report)
    registers = re.search(r"Used (\d+) registers", report)
    assert registers is not None, report
    return Compiled(
        kernel.name,
        kernel.metadata.shared,
        int(registers[1]),
        sum(map(int, spills)),
        kernel.metadata.num_warps,
        ptx,
    )


def states(count: int, d: int, dtype: torch.dtype, tokens: int = 2048) -> list[torch.Tensor]:
    return [torch.empty(8, tokens, d, dtype=dtype, device="meta") for _ in range(count)]
