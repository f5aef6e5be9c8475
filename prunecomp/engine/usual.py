"""PyTorch as a program finds it that has set nothing, whatever the caller's has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def usual() -> Iterator[None]:
    """Within, a tensor of which nothing is said is float32 and on the CPU, and ``torch.inference_mode`` is off.

    Numbers must not depend on ``torch.set_default_dtype`` or ``torch.set_default_device``. Also a decorator.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        # A device that is named costs every call a little.
        here = torch.empty(0).device.type == "cpu"
        device: AbstractContextManager[Any] = nullcontext() if here else torch.device("cpu")
        with device, torch.inference_mode(False):
            yield
    finally:
        torch.set_default_dtype(dtype)
