"""Data as programs hold it: arrays, tensors, lists, batches, loaders, data sets, frames; read as files are."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from prunecomp.data.records import (
    IDS,
    MASK,
    MASKED,
    Content,
    Document,
    documents_of,
    gathered,
    is_batch,
    is_conversation,
    is_row,
    padded,
    rows_of,
    unboxed,
)
from prunecomp.errors import DataError, PrunecompWarning

MOST_ROWS, MOST_TOKENS = 10_000, 1_000_000
"""What is taken of what is read a piece at a time, where nothing else says how much is needed."""
CHARACTERS = 20
"""For each token that is needed, of texts that are read a piece at a time: more than tokens have on average."""
WANTED = (
    "give integers of shape [T] or [N, S], a batch with input_ids and attention_mask, a loader or a data set of such, "
    'texts, conversations, or a path, as in "text.txt" or [{"messages": [...]}, ...]'
)


def content_of(source: Any, name: str, rows: int = MOST_ROWS, tokens: int = MOST_TOKENS) -> Content:
    """What an object holds, as :func:`prunecomp.data.files.read_file` has it of a file.

    Arrays, lists and batches are taken whole, and texts and conversations of whatever has a length. Of what gives token
    ids a piece at a time (a loader, a data set, a generator) the first ``rows`` are taken, and a warning tells of those
    that are left; of what has no length, texts for so many ``tokens``: no more is asked of it. Raises
    :class:`DataError`.
    """
    if np.ma.is_masked(source):
        raise DataError(MASKED)
    source = [tuple(source)] if is_batch(source) else _columns(source)
    if isinstance(source, Mapping) and (row := _one_row(source)) is not None:
        return _found(row, source)
    if isinstance(source, torch.Tensor) or is_row(source) or getattr(source, "dtype", None) is not None:
        array = as_array(source)
        if array.dtype.kind in "OU":
            held = array.tolist()
            return next(rows_of(held, None, name)) if is_row(held) else content_of(held, name)
        if array.ndim == 2 and array.dtype.kind == "i" and array.size and array.min() < 0:
            return padded(list(rows_of(array, None, name)))
        return array
    if isinstance(source, Mapping | list | tuple):
        if is_conversation(source) or not isinstance(source, list | tuple):
            return _found(gathered(documents_of(source, name), name), source)
        return _found(gathered(_each(source, name), name), source)
    if isinstance(source, str | bytes | set | frozenset | io.IOBase) or not _is_iterable(source):
        raise DataError(f"{name} cannot be read as token ids: {WANTED}")
    return _found(_taken(source, name, rows, tokens), source)


def _taken(source: Any, name: str, rows: int, tokens: int) -> Content:
    held: list[Document] = []
    size, characters = _size(getattr(source, "dataset", source)), 0  # a loader's own length is in batches
    for document in _each(_pieces(source), name):
        held.append(document)
        if isinstance(document, np.ndarray):
            enough = len(held) >= rows
        else:  # what has an end is read whole, as a file is
            characters += len(document) if isinstance(document, str) else 0
            enough = size is None and (characters >= tokens * CHARACTERS or len(held) >= max(rows, MOST_ROWS))
        if enough:
            if size is not None and size > len(held):
                warnings.warn(
                    f"{name}: the first {len(held):,} of its {size:,} samples are taken; to take more, say how many, "
                    f"as in samples={size}",
                    PrunecompWarning,
                    stacklevel=2,
                )
            break
    return gathered(held, name)


def _size(source: Any) -> int | None:
    try:
        return len(source)
    except (TypeError, NotImplementedError):
        return None


def _is_iterable(source: Any) -> bool:
    return isinstance(source, Iterable) or (hasattr(source, "__getitem__") and _size(source) is not None)


def _pieces(source: Any) -> Iterable[Any]:
    """A data set of torch has a length and takes numbers, and may know no end otherwise."""
    return source if isinstance(source, Iterable) else (source[number] for number in range(len(source)))


def _each(source: Iterable[Any], name: str) -> Iterator[Document]:
    pieces = iter(source)
    number = 0
    while True:
        try:
            piece = next(pieces)
        except StopIteration:
            return
        except Exception as error:  # whatever it does to give one
            raise DataError(f"{name}, number {number}, could not be had ({type(error).__name__}: {error})") from error
        if isinstance(piece, list) and len(piece) > 1 and all(isinstance(part, torch.Tensor) for part in piece):
            piece = tuple(piece)  # as loaders batch samples of several tensors
        elif isinstance(piece, list) and len(piece) == 1 and isinstance(piece[0], torch.Tensor):
            piece = piece[0]
        if not (isinstance(piece, list | tuple) and not piece):  # a row without a token
            yield from documents_of(_columns(piece), f"{name}, number {number}")
        number += 1


def _found(content: Content, source: Any) -> Content:
    if not len(content):
        raise DataError(f"this {type(source).__name__} is empty, and holds no token ids: {WANTED}")
    return content


def _columns(source: Any) -> Any:
    """A frame or table as a mapping of its columns, an array of Arrow as a list; what is none, as it is."""
    if isinstance(source, Mapping):
        splits = [key for key, value in source.items() if hasattr(value, "column_names")]
        if splits:
            raise DataError(f"this {type(source).__name__} has {splits}: choose one, as in dataset[{splits[0]!r}]")
        return {name: _column(value) for name, value in source.items()}
    if hasattr(source, "to_pydict"):  # of Arrow
        return source.to_pydict()
    if hasattr(source, "to_dict") and hasattr(source, "columns") and not hasattr(source, "features"):  # pandas, polars
        return {str(name): list(source[name]) for name in source.columns}
    return source.to_pylist() if hasattr(source, "to_pylist") else source


def _column(value: Any) -> Any:
    """One column as a list, where it is no array."""
    lists = next((name for name in ("to_pylist", "to_list") if hasattr(value, name)), None)
    if lists is not None:
        return getattr(value, lists)()
    plain = isinstance(value, str | bytes | bytearray | memoryview | list | tuple | Mapping | torch.Tensor | np.ndarray)
    return list(value) if not plain and isinstance(value, Sequence) else value


def _one_row(batch: Mapping[Any, Any]) -> np.ndarray | None:
    """What a tokenizer gives of one text: ids [T] in a row, to be sampled, and not a window."""
    ids = unboxed(batch.get(IDS))
    if is_row(ids) or getattr(ids, "ndim", None) == 1:
        return next(rows_of(ids, batch.get(MASK), IDS), np.empty(0, dtype=np.int64))
    return None


def as_array(source: Any) -> np.ndarray:
    """Token ids in memory, of whatever kind. Raises :class:`DataError`."""
    kind = type(source).__name__
    try:
        array = np.asarray(source.detach().cpu() if isinstance(source, torch.Tensor) else source)
    except Exception as error:  # tensors without data, objects that promise an array and have none
        raise DataError(f"this {kind} cannot be read as token ids ({error}): {WANTED}") from error
    if array.ndim == 0 or array.dtype.kind == "S":
        raise DataError(f"this {kind} holds no token ids: {WANTED}")
    return array
