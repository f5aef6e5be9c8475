"""Triton kernels from ``kernels/``, and the interpreter for tests without a GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

try:
    import triton  # type: ignore[import-untyped, unused-ignore] # noqa: F401
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True
    from prunecomp.kernels.layer_gram import layer_gram as launch_layer_gram
    from prunecomp.kernels.layer_stats import layer_stats as launch_layer_stats
    from prunecomp.kernels.linear_gram import linear_gram as launch_linear_gram
    from prunecomp.kernels.weight_norms import weight_norms as launch_weight_norms
    from prunecomp.kernels.weight_salience import weight_salience as launch_weight_salience

LEAST_CAPABILITY = (8, 0)
"""Ampere: bfloat16 on tensor cores, and copies to shared memory that do not wait."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton reads the variable once, when the kernels are defined."""


def layer_stats(
    x: torch.Tensor, y: torch.Tensor, lengths: torch.Tensor | None, with_input: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As :func:`prunecomp.ops.reference.layer_stats`."""
    if x.numel() == 0:
        n, _, d = x.shape
        return (
            x.new_zeros(n, 8, dtype=torch.float64),
            x.new_zeros(n, 3, dtype=torch.int64),
            x.new_zeros(n, d, dtype=torch.float64),
            x.new_zeros(n if with_input else 0, d, dtype=torch.float64),
        )
    with on_device_of(x):
        return launch_layer_stats(x, y, lengths, with_input)  # type: ignore[no-any-return, unused-ignore]


def layer_gram(states: Sequence[torch.Tensor], lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`prunecomp.ops.reference.layer_gram`."""
    first, m = states[0], len(states)
    if first.numel() == 0:
        n = first.shape[0]
        return first.new_zeros(4, n, m, m, dtype=torch.float64), first.new_zeros(n, m, 2, dtype=torch.int64)
    with on_device_of(first):
        return launch_layer_gram(states, lengths)  # type: ignore[no-any-return, unused-ignore]


def weight_norms(w: torch.Tensor) -> torch.Tensor:
    """As :func:`prunecomp.ops.reference.weight_norms`."""
    if w.numel() == 0:
        return w.new_zeros(2, dtype=torch.float64)
    with on_device_of(w):
        return launch_weight_norms(w)  # type: ignore[no-any-return, unused-ignore]


def weight_salience(w: torch.Tensor, g: torch.Tensor, acc: torch.Tensor) -> torch.Tensor:
    """As :func:`prunecomp.ops.reference.weight_salience`."""
    if w.numel() == 0:
        return w.new_zeros((), dtype=torch.float64)
    with on_device_of(w):
        return launch_weight_salience(w, g, acc)  # type: ignore[no-any-return, unused-ignore]


def linear_gram(a: torch.Tensor, b: torch.Tensor, ata: torch.Tensor, atb: torch.Tensor) -> None:
    """As :func:`prunecomp.ops.reference.linear_gram`."""
    if a.numel() == 0:
        return
    with on_device_of(a):
        launch_linear_gram(a, b, ata, atb)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "layer_stats": layer_stats,
    "layer_gram": layer_gram,
    "weight_norms": weight_norms,
    "weight_salience": weight_salience,
    "linear_gram": linear_gram,
}


def obstacle(device: str) -> str | None:
    """Why the kernels cannot run on a device type here, with the remedy, or None if they can."""
    if not INSTALLED:
        return "triton is not installed; install prunecomp[triton]"
    if device == "cpu":
        return None if INTERPRETED else "it needs a GPU (or TRITON_INTERPRET=1, to test, before Python starts)"
    if device != "cuda":
        return f"it runs on CUDA devices, not on {device}"
    if INTERPRETED:
        return "TRITON_INTERPRET=1 is set, which runs kernels on the CPU; unset it"
    return too_old()


@cache
def too_old() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device is visible; check the driver and CUDA_VISIBLE_DEVICES"
    weakest = min(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
    if weakest < LEAST_CAPABILITY:
        return "a visible GPU has capability {}.{}; 8.0 is needed; hide it with CUDA_VISIBLE_DEVICES".format(*weakest)
    return None


def on_device_of(x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device and its current stream."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
