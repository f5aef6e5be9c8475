"""Arguments at the border: each is of the kind that it is meant to be, or an :class:`OptionError` says what is."""

from __future__ import annotations

import operator
import os
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from prunecomp.errors import OptionError

MOST_LAYERS = 10_000
"""More than any model has: a list of layers is not read beyond it."""

LONGEST_NAME = 255
"""Bytes of a name in a folder, on the file systems in use."""


def whole(option: str, value: Any, least: int, most: int | None = None, unit: str = "") -> int:
    """A whole number, of Python, numpy or torch."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise OptionError(f"{option} {shown(repr(value))}: give a whole number{unit and f' of {unit}'}") from None
    if number < least or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise OptionError(f"{option} {shown(number)}: give {bounds}{unit and f' {unit}'}")
    return number


def flag(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{option} {shown(repr(value))}: give True or False")
    return value


def function(option: str, value: Any) -> None:
    if not callable(value):
        raise OptionError(f"{option} {shown(repr(value))}: give a function, or leave it out")


def text(option: str, value: Any) -> str:
    if not isinstance(value, str):
        raise OptionError(f"{option} {shown(repr(value))}: give its name as text")
    return value


def folder_path(option: str, value: Any) -> Path:
    """A path that can be; no name at all would be taken for the current folder."""
    if not isinstance(value, str | Path) or not str(value).strip() or not names_a_path(str(value)):
        raise OptionError(f"{option} {shown(value)}: give a path")
    if max(map(len, map(os.fsencode, Path(value).parts)), default=0) > LONGEST_NAME:
        raise OptionError(f"{option} {shown(value)}: a name in it is longer than {LONGEST_NAME} bytes; give a path")
    return Path(value)


def names_a_path(text: str) -> bool:
    """Whether a file system is to be asked for it at all: zero bytes and lone surrogates are in no name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def one_of(option: str, value: Any, choices: Collection[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise OptionError(f"{option} {shown(value)}: choose {', '.join(choices)}")
    return value


def layer_numbers(option: str, values: Any) -> list[int]:
    """Layer indices in the order given."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise OptionError(f"{option} {shown(repr(values))}: give layer numbers as a list, as in [0, 1, 7]")
    numbers = [whole(option, value, 0) for value in islice(values, MOST_LAYERS + 1)]
    if len(numbers) > MOST_LAYERS:
        raise OptionError(f"{option}: more than {MOST_LAYERS:,} numbers; no model has so many layers")
    return numbers


def listed(values: Collection[Any], most: int = 8) -> str:
    """Values with commas between them: the first few and how many there are, where there are many."""
    some = ", ".join(str(value) for value in islice(values, most))
    return some if len(values) <= most else f"{some}, ... ({len(values)} in all)"


def shown(value: Any) -> str:
    """A value as a message shows it, short."""
    plain = isinstance(value, str) and value.isprintable() and value.strip()
    words = str(value) if plain else repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."
