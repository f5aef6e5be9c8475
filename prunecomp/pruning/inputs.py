"""From what is given as data to the windows that a model is run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunecomp.data.mixture import allotted, interleaved, parts_of
from prunecomp.data.sources import document_source, read, token_source
from prunecomp.data.windows import (
    Windows,
    check_context,
    choose_seqlen,
    consecutive_windows,
    context_of,
    draw_documents,
    draw_windows,
    every_document,
)
from prunecomp.engine.placement import free_host_memory
from prunecomp.errors import OptionError
from prunecomp.model.source import ModelSource

MIXTURE = Path(__file__).parent.parent / "data" / "texts" / "mixture.txt"
"""What is calibrated on where nothing is given: fiction, a report, documentation and code, one after another."""


def calibration_windows(
    model_source: ModelSource,
    source: Any,
    samples: int,
    seqlen: int | None,
    seed: int,
    documents: bool = False,
    bos: str = "auto",
) -> Windows:
    """Windows of one length cut from the whole text, or ``documents`` one by one, as conversations always are; of
    several sources by their weights (see :func:`prunecomp.data.mixture.parts_of`); of :data:`MIXTURE` without a
    source. Raises :class:`OptionError` or
    :class:`DataError`."""
    source = MIXTURE if source is None else source
    length = choose_seqlen(seqlen, model_source.config)
    parts = parts_of(source)
    if parts is None:
        return _drawn(model_source, source, samples, length, seed, documents, bos)
    counts = allotted(samples, [weight for _, weight in parts])
    each = [
        _drawn(model_source, one, count, length, seed, documents, bos).take(slice(count))
        for (one, _), count in zip(parts, counts, strict=True)
    ]
    return interleaved(each, [weight for _, weight in parts])


def _drawn(
    model_source: ModelSource, source: Any, samples: int, length: int, seed: int, documents: bool, bos: str
) -> Windows:
    reading = read(source, samples, samples * length)
    if documents or reading.conversations:
        windows = draw_documents(
            document_source(reading, model_source.tokenize, model_source.vocab_size, bos), samples, length, seed
        )
        check_length(model_source, windows.seqlen)
        return windows
    tokens = token_source(reading, model_source.tokenize, model_source.vocab_size, bos)
    check_length(model_source, tokens.longest(length), tokens.tokens.ndim == 2)
    return draw_windows(tokens, samples, length, seed, free_host_memory())


def evaluation_windows(model_source: ModelSource, source: Any, seqlen: int | None, bos: str = "auto") -> Windows:
    """Windows of a text that do not overlap, or conversations one by one; of several sources those of all."""
    length = choose_seqlen(seqlen, model_source.config)
    parts = parts_of(source)
    if parts is None:
        return _all(model_source, source, length, bos)
    if len({weight for _, weight in parts}) > 1:
        raise OptionError(
            "--eval: a text to measure on has no weight, for all of it counts: give each source by itself, or leave "
            "the weights out"
        )
    return interleaved([_all(model_source, one, length, bos) for one, _ in parts], [weight for _, weight in parts])


def _all(model_source: ModelSource, source: Any, length: int, bos: str) -> Windows:
    reading = read(source)
    if reading.conversations:
        windows = every_document(document_source(reading, model_source.tokenize, model_source.vocab_size, bos), length)
        check_length(model_source, windows.seqlen)
        return windows
    tokens = token_source(reading, model_source.tokenize, model_source.vocab_size, bos)
    check_length(model_source, tokens.longest(length), tokens.tokens.ndim == 2)
    return consecutive_windows(tokens, length)


def check_length(model_source: ModelSource, length: int, given: bool = False) -> None:
    """Raise :class:`OptionError`, or warn, where a window of ``length`` tokens is too long for the model; ``given``
    says that it came as such."""
    check_context(length, model_source.position_rows, context_of(model_source.config), given)


def window_length(model_source: ModelSource, seqlen: int | None) -> int:
    """How long windows cut from a text are. Raises :class:`OptionError` where that is too long for the model."""
    length = choose_seqlen(seqlen, model_source.config)
    check_length(model_source, length)
    return length
