"""CUDA from ``csrc/`` through a plain C interface. Arguments come checked from :mod:`prunecomp.ops.functions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from prunecomp.errors import BackendError
from prunecomp.ops import libraries
from prunecomp.ops.libraries import DTYPES, pointer, require
from prunecomp.ops.reference import fresh_gram, fresh_stats

LIBRARY = "prunecomp_cuda"
REMEDY = "install the CUDA toolkit (nvcc on PATH, or CUDA_HOME set) and install prunecomp again"

LEAST_CAPABILITY = (8, 0)
"""Ampere: bfloat16 and TF32 on tensor cores."""


def obstacle(device: str) -> str | None:
    """Why these operations cannot run on a device type, or None if they can."""
    if device != "cuda":
        return f"it runs on an NVIDIA GPU, not on {device}"
    reason = libraries.load(LIBRARY).reason
    if reason is not None:
        return f"{reason}: {REMEDY}"
    if torch.version.hip or not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU"
    capability = min(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
    if capability < LEAST_CAPABILITY:
        return f"it needs compute capability 8.0 or later, and a GPU here has {capability[0]}.{capability[1]}"
    return None


def layer_stats(
    x: torch.Tensor, y: torch.Tensor, lengths: torch.Tensor | None, with_input: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As :func:`prunecomp.ops.reference.layer_stats`, in one read of ``x`` and ``y``; queued on the current stream."""
    n, s, d = x.shape
    library = require(LIBRARY, REMEDY)
    with _queue(x.device) as stream:
        sums, counts, magnitude, input_magnitude = fresh_stats(x, with_input)
        workspace = x.new_empty(library.pc_cuda_layer_stats_workspace(n, s, d, with_input), dtype=torch.uint8)
        code = library.pc_cuda_layer_stats(
            *(x.data_ptr(), x.stride(0), x.stride(1), y.data_ptr(), y.stride(0), y.stride(1)),
            *(DTYPES[x.dtype], n, s, d, pointer(lengths), sums.data_ptr(), counts.data_ptr(), magnitude.data_ptr()),
            *(pointer(input_magnitude if with_input else None), workspace.data_ptr(), stream),
        )
    _check("pc_cuda_layer_stats", code)
    return sums, counts, magnitude, input_magnitude


def layer_gram(states: Sequence[torch.Tensor], lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`prunecomp.ops.reference.layer_gram`, for up to 128 states; queued on the current stream."""
    first, m = states[0], len(states)
    n, s, d = first.shape
    library = require(LIBRARY, REMEDY)
    if m > ONE_ROLE:
        check_shared_memory(first.device, m)
    # Workspace and table may be freed while the work is still queued: the allocator gives their memory to later work
    # of the same stream only. The driver copies a table this small aside at once, so its host memory may go as well.
    with _queue(first.device) as stream:
        table = torch.tensor([state.data_ptr() for state in states]).to(first.device, non_blocking=True)
        sums, counts = fresh_gram(states)
        workspace = first.new_empty(library.pc_cuda_layer_gram_workspace(m, n, s, d), dtype=torch.uint8)
        code = library.pc_cuda_layer_gram(
            *(table.data_ptr(), m, first.stride(0), first.stride(1), DTYPES[first.dtype], n, s, d, pointer(lengths)),
            *(sums.data_ptr(), counts.data_ptr(), workspace.data_ptr(), stream),
        )
    _check("pc_cuda_layer_gram", code)
    return sums, counts


ONE_ROLE = 64
"""States up to which one group of warps holds all pairs."""

SHARED_BEYOND = (4 * 72 * 128 + 2 * 128) * 4 + 128 * 8
"""Bytes of it that a block takes beyond, as ``csrc/layer_gram.cu`` adds them up: products and sums of 72 tiles, squares
and norms, and where each state is."""


def check_shared_memory(device: torch.device, states: int) -> None:
    """Raise :class:`BackendError` where a block cannot have the shared memory that so many states take: of the cards
    from capability 8.0 on those of 8.6, 8.7 and 8.9 have 99 KiB."""
    properties: Any = torch.cuda.get_device_properties(device)
    held = properties.shared_memory_per_block_optin
    if held < SHARED_BEYOND:
        raise BackendError(
            f"layer_gram: the cuda back end needs {SHARED_BEYOND:,} bytes of shared memory beyond {ONE_ROLE} states, "
            f"and this card has {held:,}, with {states} states: use --backend triton"
        )


OPERATIONS: dict[str, Callable[..., Any]] = {"layer_stats": layer_stats, "layer_gram": layer_gram}


@contextmanager
def _queue(device: torch.device) -> Iterator[int]:
    """Makes a device current and gives the handle of its current stream."""
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


def _check(name: str, code: int) -> None:
    if code:
        raise BackendError(f"{name}: {require(LIBRARY, REMEDY).pc_cuda_error_message(code).decode()}")
