"""The native libraries: where they are, and the C prototypes of ``csrc/stats.h``.

``setup.py`` puts ``libprunecomp_cpu.so`` and ``libprunecomp_cuda.so`` into ``prunecomp/lib``. Neither must be there.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from prunecomp.errors import BackendError

FOLDER = Path(__file__).resolve().parents[1] / "lib"

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""``enum pc_dtype``."""

_ROWS = [c_void_p, c_int64, c_int64]  # base, stride_n, stride_s
_SHAPE = [c_int, c_int64, c_int64, c_int64, c_void_p]  # dtype, N, S, d, lengths
_STATES = [c_void_p, c_int64, c_int64, c_int64, *_SHAPE]  # states, M, stride_n, stride_s, ...

PROTOTYPES: dict[str, dict[str, tuple[Any, list[Any]]]] = {
    "prunecomp_cpu": {
        "pc_cpu_error_message": (c_char_p, [c_int]),
        "pc_cpu_variant": (c_char_p, []),
        "pc_cpu_set_variant": (c_int, [c_char_p]),
        "pc_cpu_layer_stats": (c_int, [*_ROWS, *_ROWS, *_SHAPE, *[c_void_p] * 4, c_int]),
        "pc_cpu_layer_gram": (c_int, [*_STATES, c_void_p, c_void_p, c_int]),
        "pc_cpu_weight_norms": (c_int, [c_void_p, c_int64, c_int, c_int64, c_int64, c_void_p, c_int]),
        "pc_cpu_weight_salience": (c_int, [c_void_p, c_int, c_void_p, c_int, c_void_p, c_int64, c_void_p, c_int]),
    },
    "prunecomp_cuda": {
        "pc_cuda_error_message": (c_char_p, [c_int]),
        "pc_cuda_layer_stats_workspace": (c_size_t, [c_int64, c_int64, c_int64, c_int]),
        "pc_cuda_layer_stats": (c_int, [*_ROWS, *_ROWS, *_SHAPE, *[c_void_p] * 6]),
        "pc_cuda_layer_gram_workspace": (c_size_t, [c_int64, c_int64, c_int64, c_int64]),
        "pc_cuda_layer_gram": (c_int, [*_STATES, *[c_void_p] * 4]),
    },
}
"""Result and argument types of each function, library by library."""


class Library(NamedTuple):
    """A library, or the reason why there is none."""

    functions: ctypes.CDLL | None
    reason: str | None


def find(name: str) -> Path:
    """Where the library ``name`` is, or would be."""
    return FOLDER / f"lib{name}.so"


@cache
def load(name: str) -> Library:
    """The library ``name``, loaded once with its prototypes set. A function that it lacks keeps none."""
    path = find(name)
    if not path.is_file():
        return Library(None, f"{path.name} was not built")
    try:
        functions = ctypes.CDLL(str(path))
    except OSError as error:
        return Library(None, f"{path.name} cannot be loaded: {error}")
    for function, (result, arguments) in PROTOTYPES[name].items():
        if hasattr(functions, function):
            getattr(functions, function).restype = result
            getattr(functions, function).argtypes = arguments
    return Library(functions, None)


def require(name: str, remedy: str) -> ctypes.CDLL:
    """The library ``name``; raises :class:`BackendError` with the ``remedy`` where it is missing."""
    functions, reason = load(name)
    if functions is None:
        raise BackendError(f"{reason}: {remedy}")
    return functions


def pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
