"""Repairs to the interpreter of Triton 3.6, without which it stops or answers wrongly. Kernels need none of it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

try:
    from triton import language as tl
    from triton.runtime import interpreter
except ImportError:
    INTERPRETED = False
else:
    INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


def _widened(handle: Any) -> np.ndarray:
    """The numbers of a handle; it keeps bfloat16 as the upper halves of float32 in uint16."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def _dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """The interpreter's own multiplies the bits of bfloat16 as integers."""
    product = np.matmul(_widened(a), _widened(b), dtype=d.data.dtype)
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


@pytest.fixture(autouse=True)
def repaired_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)  # numpy 2.4 no longer makes an int of an array of one element
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_tensor_and_index)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", _dot)
