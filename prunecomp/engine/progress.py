"""How long work tells how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Advance = Callable[[int], None]
"""Called with the number of steps just done."""

Progress = Callable[[str, int, str], AbstractContextManager[Advance]]
"""``progress(description, total, unit)`` opens a stage of ``total`` steps and gives the function that advances it."""


def silent(description: str, total: int, unit: str) -> AbstractContextManager[Advance]:
    """Progress for those who want none."""
    return nullcontext(lambda steps: None)
