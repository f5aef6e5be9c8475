"""C++ on the CPU, from ``csrc/`` through a plain C interface. :mod:`prunecomp.ops.functions` checks the arguments."""

from __future__ import annotations

import ctypes
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from prunecomp.errors import BackendError
from prunecomp.ops import libraries
from prunecomp.ops.libraries import DTYPES, pointer, require
from prunecomp.ops.reference import fresh_gram, fresh_stats

LIBRARY = "prunecomp_cpu"
REMEDY = "install a C++17 compiler (g++ or clang++, or name one in CXX) and install prunecomp again"

log = logging.getLogger("prunecomp")


def obstacle(device: str) -> str | None:
    """Why these operations cannot run on a device type, or None if they can."""
    if device != "cpu":
        return f"it runs on the CPU, not on {device}"
    reason = libraries.load(LIBRARY).reason
    if reason is None:
        return None
    _warn(reason)
    return f"{reason}: {REMEDY}"


def variant() -> str:
    """The instruction set in use: ``avx512``, ``avx2``, ``baseline`` or ``neon``."""
    return str(require(LIBRARY, REMEDY).pc_cpu_variant().decode())


def layer_stats(
    x: torch.Tensor, y: torch.Tensor, lengths: torch.Tensor | None, with_input: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As :func:`prunecomp.ops.reference.layer_stats`, in one read of ``x`` and ``y``."""
    n, s, d = x.shape
    sums, counts, magnitude, input_magnitude = fresh_stats(x, with_input)
    _call(
        "pc_cpu_layer_stats",
        *(x.data_ptr(), x.stride(0), x.stride(1), y.data_ptr(), y.stride(0), y.stride(1)),
        *(DTYPES[x.dtype], n, s, d, pointer(lengths)),
        *(sums.data_ptr(), counts.data_ptr(), magnitude.data_ptr(), pointer(input_magnitude if with_input else None)),
    )
    return sums, counts, magnitude, input_magnitude


def layer_gram(states: Sequence[torch.Tensor], lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`prunecomp.ops.reference.layer_gram`, in one read of each state."""
    first, m = states[0], len(states)
    n, s, d = first.shape
    sums, counts = fresh_gram(states)
    pointers = (ctypes.c_void_p * m)(*(state.data_ptr() for state in states))
    _call(
        "pc_cpu_layer_gram",
        *(pointers, m, first.stride(0), first.stride(1), DTYPES[first.dtype], n, s, d, pointer(lengths)),
        *(sums.data_ptr(), counts.data_ptr()),
    )
    return sums, counts


def weight_norms(w: torch.Tensor) -> torch.Tensor:
    """As :func:`prunecomp.ops.reference.weight_norms`."""
    out = torch.empty(2, dtype=torch.float64)
    _call("pc_cpu_weight_norms", w.data_ptr(), w.stride(0), DTYPES[w.dtype], w.shape[0], w.shape[1], out.data_ptr())
    return out


def weight_salience(w: torch.Tensor, g: torch.Tensor, acc: torch.Tensor) -> torch.Tensor:
    """As :func:`prunecomp.ops.reference.weight_salience`, in one pass."""
    out = torch.empty((), dtype=torch.float64)
    _call(
        "pc_cpu_weight_salience",
        *(w.data_ptr(), DTYPES[w.dtype], g.data_ptr(), DTYPES[g.dtype], acc.data_ptr(), acc.numel(), out.data_ptr()),
    )
    return out


OPERATIONS: dict[str, Callable[..., Any]] = {
    "layer_stats": layer_stats,
    "layer_gram": layer_gram,
    "weight_norms": weight_norms,
    "weight_salience": weight_salience,
}


def _call(name: str, *arguments: Any) -> None:
    """Calls a function whose last argument is the number of threads; the interpreter's lock is free meanwhile."""
    library = require(LIBRARY, REMEDY)
    code = getattr(library, name)(*arguments, torch.get_num_threads())
    if code:
        raise BackendError(f"{name}: {library.pc_cpu_error_message(code).decode()}")


@cache
def _warn(reason: str) -> None:
    message = f"the native CPU library is not used, operations on the CPU will be slower: {reason}; {REMEDY}"
    log.warning(message)
    warnings.warn(message, RuntimeWarning, stacklevel=2)
