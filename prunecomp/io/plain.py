"""JSON at the border: what comes in is turned into a sentence where it cannot be read, what goes out is valid."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

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
        raise error(
            f"{path} cannot be read: it holds {_kind(value)} where an object {{...}} belongs{remedy and f': {remedy}'}"
        )
    return value


def json_text(value: Any, *, ascii_only: bool = False) -> str:
    """``value`` as JSON that every reader takes: what is not finite is ``null``, for JSON has no word for it."""
    return json.dumps(finite(value), indent=2, ensure_ascii=ascii_only, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json_text(value) + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """Plain data with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a truth value", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


LARGEST_INTEGER = 10**300
"""Every one below is a float too."""


def as_fields_of(kind: type, entry: Any) -> dict[str, Any]:
    """``entry``, an object from JSON, as arguments of the dataclass ``kind``: JSON has no integer keys, and they are
    made here. Raises :class:`ValueError` naming the field that is missing, unknown, or of another type."""
    if not isinstance(entry, dict):
        raise ValueError(f"{_kind(entry)} where an object {{...}} belongs")
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    odd = sorted(set(names) ^ set(entry))
    if odd:
        raise ValueError(f"{brief(odd[0])} is {'missing' if odd[0] in names else 'unknown'}")
    return {name: _as(hints[name], entry[name], name) for name in names}


def _as(kind: Any, value: Any, name: str) -> Any:
    origin, of = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is list and isinstance(value, list):
        return [_as(of[0], one, name) for one in value]
    if origin is dict and isinstance(value, dict):
        return {int(key) if of[0] is int else key: _as(of[1], one, name) for key, one in value.items()}
    kinds = () if origin in (list, dict) else of or (kind,)  # of a union, or the type itself
    fits = type(value) in kinds or (float in kinds and type(value) is int)
    if fits and not (type(value) is int and abs(value) >= LARGEST_INTEGER):
        return value
    raise ValueError(f"{name} is {brief(repr(value))}")


def brief(text: str, most: int = 120) -> str:
    """``text`` fit to stand in a message: short, and of printable characters."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:most])
    return shown + ("..." if len(text) > most else "")
