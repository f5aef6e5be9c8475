"""How fast this machine multiplies, copies and reads, measured in about a second."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

FEW = 16
"""Rows of a matrix product that tell how many can be afforded."""

SECONDS = 0.15
"""How long each rate is measured for, after one warm-up."""

BLOCK = 64 * 2**20


@dataclass(frozen=True)
class Rates:
    """Bytes or operations a second; None where there is nothing to measure."""

    flops: float
    """Of a large matrix product in the compute dtype."""
    link: float | None
    """Pinned host memory to device."""
    checkpoint: float | None
    """Reading weight files, their pages dropped from the cache first where the system allows it."""
    disk: float | None
    """Writing states to ``--disk`` until they are there."""


def measure_rates(
    device: torch.device, dtype: torch.dtype, width: int, folder: Path | None, disk: Path | None
) -> Rates:
    """Measure on the device and folders a run would use; ``width`` is the hidden size of its matrices."""
    files = [] if folder is None else sorted(folder.glob("*.safetensors"), key=lambda path: -path.stat().st_size)
    return Rates(
        flops=matrix_rate(device, dtype, width),
        link=link_rate(device) if device.type == "cuda" else None,
        checkpoint=read_rate(files[0]) if files else None,
        disk=None if disk is None else write_rate(disk),
    )


def matrix_rate(device: torch.device, dtype: torch.dtype, width: int) -> float:
    rows = 8192 if device.type == "cuda" else 1024
    # What fills a GPU, and what a single core multiplies within the second.
    width = max(width, 4096) if device.type == "cuda" else min(width, 2048)
    drawn = torch.Generator(device).manual_seed(0)  # the default one is the caller's
    a = torch.randn(rows, width, device=device, generator=drawn).to(dtype)
    # As a layer has it: another layout may be slower.
    weight = torch.randn(4 * width, width, device=device, generator=drawn).to(dtype)
    if device.type == "cpu":  # in 16 bits many take minutes for what others do in a second
        few = _seconds(lambda: functional.linear(a[:FEW], weight), device)
        a = a[: max(FEW, int(FEW * SECONDS / few))]
    return 2 * len(a) * width * 4 * width / _seconds(lambda: functional.linear(a, weight), device)


def link_rate(device: torch.device) -> float:
    host = torch.empty(BLOCK, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(BLOCK, dtype=torch.uint8, device=device)
    return BLOCK / _seconds(lambda: there.copy_(host, non_blocking=True), device)


def read_rate(file: Path) -> float:
    size = min(file.stat().st_size, BLOCK)
    with open(file, "rb", buffering=0) as handle:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        while handle.tell() < size and handle.read(2**20):
            pass
        return size / (time.perf_counter() - started)


def write_rate(folder: Path, blocks: int = 32) -> float | None:
    """Of so many blocks of a MiB; None where there is no room to try it."""
    block = os.urandom(2**20)
    try:
        with tempfile.TemporaryFile(dir=folder) as handle:
            started = time.perf_counter()
            for _ in range(blocks):
                handle.write(block)
            handle.flush()
            os.fsync(handle.fileno())
            return blocks * len(block) / (time.perf_counter() - started)
    except OSError:
        return None


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    finish()
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS or calls == 0:
        call()
        finish()
        calls += 1
    return (time.perf_counter() - started) / calls
