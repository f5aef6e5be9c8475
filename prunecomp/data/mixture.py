"""Several sources as one: with how much of each, and in which order."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunecomp.data.sources import exists, split_field
from prunecomp.data.windows import Windows
from prunecomp.errors import OptionError

Parts = list[tuple[Any, float]]
"""Sources and their weights."""
WEIGHTED = re.compile(r"(.+):(\d+(?:\.\d*)?|\.\d+)")


def parts_of(source: Any) -> Parts | None:
    """The sources in ``source`` with their weights, where it is several: ``"a.txt:0.5 chats.jsonl:0.5"``,
    ``{"a.txt": 0.5, "chats.jsonl": 0.5}``, ``[("a.txt", 0.5), (tokens, 0.5)]``, or a list of files, which weigh the
    same. None where it is one. Raises :class:`OptionError` for a weight that is none."""
    parts: Parts | None = None
    if isinstance(source, str) and not exists(source):
        names = source.split()
        parts = _weighted(names)
        if parts is None and len(names) > 1 and all(map(_names_a_source, names)):
            raise OptionError(
                f"{source}: several sources each have a weight behind them, a number above 0, as in "
                "a.txt:0.5 chats.jsonl:0.5"
            )
    elif isinstance(source, Mapping) and source and all(_is_number(weight) for weight in source.values()):
        parts = [(each, float(weight)) for each, weight in source.items()]
    elif isinstance(source, list | tuple) and source:
        if all(isinstance(each, tuple) and len(each) == 2 and _is_number(each[1]) for each in source):
            parts = [(each, float(weight)) for each, weight in source]
        elif all(isinstance(each, str | Path) and _names_a_source(str(each)) for each in source):
            parts = _weighted([str(each) for each in source]) or [(each, 1.0) for each in source]
    if parts is None:
        return None
    for each, weight in parts:
        if not (math.isfinite(weight) and weight > 0):
            raise OptionError(f"{each}:{weight:g}: a weight is a number above 0, as in a.txt:0.5 chats.jsonl:0.5")
    return parts


def _weighted(names: Sequence[str]) -> Parts | None:
    """``NAME:WEIGHT`` each, where all are so, and there is something of each name."""
    matches = [None if exists(name) else WEIGHTED.fullmatch(name) for name in names]
    if not all(matches):
        return None
    return [(match[1], float(match[2])) for match in matches if match is not None] or None


def _names_a_source(name: str) -> bool:
    """Whether there is something of this name, or of the name before what may be meant as its weight."""
    return any(exists(split_field(each)[0]) for each in (name, name.rpartition(":")[0]) if each)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def allotted(samples: int, weights: Sequence[float]) -> list[int]:
    """``samples`` shared out by ``weights``, each as near to its share as whole numbers come, and at least one."""
    if samples < len(weights):
        raise OptionError(f"--samples {samples}: there are {len(weights)} sources, and each gives at least one window")
    shares = [samples * weight / sum(weights) for weight in weights]
    counts = [max(1, math.floor(share)) for share in shares]
    while sum(counts) != samples:
        step = 1 if sum(counts) < samples else -1
        which = max(
            (i for i in range(len(counts)) if counts[i] + step >= 1), key=lambda i: step * (shares[i] - counts[i])
        )
        counts[which] += step
    return counts


def interleaved(each: Sequence[Windows], weights: Sequence[float]) -> Windows:
    """The windows of several sources as one set, so mixed that every run of them holds each in its share; ``kinds``
    says which is from which."""
    kinds = np.repeat(np.arange(len(each)), [windows.count for windows in each])
    places = np.concatenate([(np.arange(windows.count) + 0.5) / windows.count for windows in each])
    order = torch.from_numpy(np.lexsort((kinds, places)))
    lengths = torch.cat([windows.each_length for windows in each])
    tokens = torch.zeros(len(kinds), int(lengths.max()), dtype=torch.int64)
    first = 0
    for windows in each:
        tokens[first : first + windows.count, : windows.seqlen] = windows.tokens
        first += windows.count
    return Windows(
        tokens[order],
        " ".join(f"{windows.source}:{weight:g}" for windows, weight in zip(each, weights, strict=True)),
        None if bool((lengths == lengths[0]).all()) else lengths[order],
        "each" if all(windows.bos == "each" for windows in each) else "start",
        drawn=True,
        kinds=torch.from_numpy(kinds)[order],
        kind_names=tuple(windows.source for windows in each),
    )
