"""Triton kernels. In a checkout they live in ``kernels/`` at the top of the repository, which has no ``__init__.py``:
with one, Python run from there would take that folder for the package ``kernels`` that transformers looks for. An
installed copy has its kernels beside this file."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if not Path(__file__).with_name("launch.py").is_file():
    __path__ = [str(Path(__file__).resolve().parents[2] / "kernels")]

if TYPE_CHECKING:  # a type checker does not follow __path__

    def __getattr__(name: str) -> ModuleType: ...
