"""Arguments at the border: each is of the kind that it is meant to be, or an :class:`OptionError` says what is."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from prunecomp.errors import BackendError, OptionError
from prunecomp.names import BACKEND_VARIABLE, BACKENDS, Dtype

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


def function(option: str, value: Any) -> Any:
    if not callable(value):
        raise OptionError(f"{option} {shown(repr(value))}: give a function, or leave it out")
    return value


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


def at_revision(model: Any, revision: str | None) -> Any:
    """``model``, a hub id, at a branch, tag or commit: as ``ORG/NAME@REVISION``. Raises :class:`OptionError` for what
    has no revisions, or has one in its name already."""
    if revision is None:
        return model
    if not isinstance(model, str | Path) or os.path.exists(model):
        what = "a folder or file" if isinstance(model, str | Path) else "a model in memory"
        raise OptionError(f"--revision {shown(revision)}: {what} has none; give it with a hub id, ORG/NAME")
    if "@" in str(model):
        raise OptionError(
            f"--revision {shown(revision)}: the model names a revision too, {shown(str(model))}; give one"
        )
    if not revision.strip() or "@" in revision:
        raise OptionError(f"--revision {shown(revision)}: give a branch, a tag or a commit")
    return f"{model}@{revision}"


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


def layer_set(option: str, values: Any) -> list[int]:
    """Layer indices, ascending: numbers, or a text as in ``"0-3,7"``."""
    if not isinstance(values, str):
        return sorted(layer_numbers(option, values))
    layers: set[int] = set()
    for part in values.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?", part)
        if match is None:
            raise OptionError(f"{option} {shown(values)}: write layer numbers and ranges, as in 0-3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise OptionError(f"{option} {shown(values)}: {first}-{last} runs backwards; write {last}-{first}")
        layers.update(range(first, _bounded(option, values, last) + 1))
    return sorted(layers)


def layer_order(option: str, values: Any) -> list[int]:
    """Layer indices in the order given: numbers, or a text as in ``"7,3,5"``."""
    if not isinstance(values, str):
        return layer_numbers(option, values)
    if re.fullmatch(r"\s*[0-9]{1,18}\s*(?:,\s*[0-9]{1,18}\s*)*", values) is None:
        raise OptionError(f"{option} {shown(values)}: write layer numbers in order, as in 7,3,5")
    return [_bounded(option, values, int(part)) for part in values.split(",")]


def _bounded(option: str, text: str, layer: int) -> int:
    if layer > MOST_LAYERS:
        raise OptionError(
            f"{option} {shown(text)}: no model has so many layers; write numbers that it has, as in 0-3,7"
        )
    return layer


UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def size(option: str, value: Any, least: int = 1) -> int:
    """Bytes: a whole number, or a text with a unit: ``"24GB"`` is 24_000_000_000, ``"1.5GiB"`` 1_610_612_736."""
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})\s*([KMGT]I?)?B?", value.strip().upper())
        if match is None:
            raise OptionError(f"{option} {shown(value)}: write bytes, or a number with a unit, as in 24GB or 500MiB")
        value = int(float(match[1]) * UNITS[match[2] or ""])
    return whole(option, value, least, unit="bytes")


def gigabytes(option: str, value: Any) -> float:
    """A size in GB: a number, or a text with or without a unit."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = size(option, value) / 1e9
    if isinstance(value, bool) or not 1e-3 <= number <= 1e6:  # NaN lies nowhere
        raise OptionError(f"{option} {shown(value)}: give GB a file, from 0.001 to 1000000")
    return number


def probability(option: str, value: Any) -> float:
    number = _number(value)
    if isinstance(value, str) or not 0.5 <= number < 1:  # NaN lies nowhere
        raise OptionError(f"{option} {shown(value)}: give a probability from 0.5 to below 1, as in 0.999")
    return number


def _number(value: Any) -> float:
    """NaN for what is none."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def several(option: str, values: Any, most: int = 10_000) -> list[Any]:
    """A list with at least one entry, or a text with commas between them."""
    if isinstance(values, str):
        entries = [entry.strip() for entry in values.split(",")]
        if not all(entries):
            raise OptionError(f"{option} {shown(values)}: write names with commas between them")
        return entries
    if isinstance(values, bytes) or not isinstance(values, Sequence) or not values:
        raise OptionError(f"{option} {shown(values)}: give a list with at least one entry")
    if len(values) > most:
        raise OptionError(f"{option}: more than {most:,} entries; a comparison of so many would not end")
    return list(values)


def device_name(option: str, value: Any) -> str:
    """One that may be there; whether it is, the model's opening tells."""
    name = text(option, str(value) if _of_torch(value, "device") else value)
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", name) is None:
        raise OptionError(f"{option} {shown(name)}: choose auto, cpu, cuda or, for the second card, cuda:1")
    return name


def dtype_name(option: str, value: Any) -> str:
    name = str(value).removeprefix("torch.") if _of_torch(value, "dtype") else value
    return one_of(option, name, get_args(Dtype))


def _of_torch(value: Any, kind: str) -> bool:
    """Whether it is a ``torch.device`` or the like: of a library that need not be there to read texts."""
    return (type(value).__module__, type(value).__name__) == ("torch", kind)


def requested_backend(option: str, value: Any = None) -> str:
    """A back end by name, else that of the environment variable, else ``auto``."""
    name = (value and text(option, value)) or os.environ.get(BACKEND_VARIABLE) or "auto"
    if name != "auto" and name not in BACKENDS:
        raise BackendError(f"{option if value else BACKEND_VARIABLE} {name}: choose auto, {', '.join(BACKENDS)}")
    return name


def runs(numbers: Iterable[int]) -> list[list[int]]:
    """Ascending numbers, those that follow each other together."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1].append(number)
        else:
            found.append([number])
    return found


def listed(values: Collection[Any], most: int = 8) -> str:
    """Values with commas between them: the first few and how many there are, where there are many."""
    some = ", ".join(str(value) for value in islice(values, most))
    return some if len(values) <= most else f"{some}, ... ({len(values)} in all)"


def shown(value: Any) -> str:
    """A value as a message shows it, short."""
    plain = isinstance(value, str) and value.isprintable() and value.strip()
    words = str(value) if plain else repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."


def ridge(option: str, value: Any) -> float | None:
    """In units of the mean diagonal of the Gram matrix."""
    if value is None:
        return None
    number = _number(value)
    if not 1e-6 <= number <= 1e6:
        raise OptionError(f"{option} {shown(value)}: give a number from 1e-6 to 1e6; 1 is the usual one")
    return number
