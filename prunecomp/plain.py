"""JSON at the border: what comes in is turned into a sentence where it cannot be read, what goes out is valid."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunecomp.errors import PrunecompError

LARGEST_FILE = 10**9
"""Bytes. An index of a million tensors has a tenth of it; more is no configuration."""


def parse_json(text: str | bytes, name: object, error: type[PrunecompError], remedy: str = "") -> Any:
    """``text`` as plain data; ``name`` says in the ``error`` where it comes from, ``remedy`` what would be right.

    A byte-order mark is passed over, as editors on Windows put one there. Raises ``error`` for what is no JSON, nests
    deeper than Python goes, or holds a number of more digits than Python takes.
    """
    try:
        return json.loads(text.removeprefix("\ufeff") if isinstance(text, str) else text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as problem:  # decoding errors and JSONDecodeError are ValueErrors
        reason = "it is nested too deep" if isinstance(problem, RecursionError) else str(problem)
        raise error(f"{name} cannot be read as JSON ({reason}){remedy and f': {remedy}'}") from None


def read_json(path: Path, error: type[PrunecompError], remedy: str = "") -> Any:
    """:func:`parse_json` of a file. Raises ``error`` also where the file cannot be read."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise error(f"{path} has {path.stat().st_size:,} bytes, too many for JSON of this kind")
        data = path.read_bytes()
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}){remedy and f': {remedy}'}") from None
    return parse_json(data, path, error, remedy)


def read_object(path: Path, error: type[PrunecompError], remedy: str = "") -> dict[str, Any]:
    """:func:`read_json` of a file that must hold an object ``{...}``."""
    value = read_json(path, error, remedy)
    if not isinstance(value, dict):
        raise error(f"{path} holds {_kind(value)} where an object {{...}} belongs{remedy and f': {remedy}'}")
    return value


def json_text(value: Any, *, ascii_only: bool = False) -> str:
    """``value`` as JSON that every reader takes: what is not finite is ``null``, for JSON has no word for it."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=ascii_only, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a truth value", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
