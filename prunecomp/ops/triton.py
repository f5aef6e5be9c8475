"""Triton kernels from ``kernels/``, and the interpreter for tests without a GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from prunecomp.ops import reference

try:
    import triton  # type: ignore[import-untyped, unused-ignore] # noqa: F401
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True
    from prunecomp.kernels import layer_gram, layer_stats, linear_gram, weight_norms, weight_salience

    KERNELS = {
        "layer_gram": layer_gram,
        "layer_stats": layer_stats,
        "linear_gram": linear_gram,
        "weight_norms": weight_norms,
        "weight_salience": weight_salience,
    }

LEAST_CAPABILITY = (8, 0)
"""Ampere: bfloat16 on tensor cores, and copies to shared memory that do not wait."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton reads the variable once, when the kernels are defined."""


def launching(name: str) -> Callable[..., Any]:
    """The kernel in the place of the function of this ``name`` in :mod:`prunecomp.ops.reference`, which is left what is
    empty: there is nothing to launch for it."""

    def operation(first: Any, *others: Any) -> Any:
        x: torch.Tensor = first if isinstance(first, torch.Tensor) else first[0]
        if x.numel() == 0:
            return getattr(reference, name)(first, *others)
        with on_device_of(x):
            return getattr(KERNELS[name], name)(first, *others)

    return operation


OPERATIONS = {
    name: launching(name) for name in ("layer_stats", "layer_gram", "weight_norms", "weight_salience", "linear_gram")
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
