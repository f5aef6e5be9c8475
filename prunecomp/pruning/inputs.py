"""From what is given as data to the windows that a model is run on."""

from __future__ import annotations

from typing import Any

from prunecomp.data.sources import read_documents, read_source
from prunecomp.data.windows import (
    Windows,
    check_context,
    choose_seqlen,
    consecutive_windows,
    context_of,
    draw_documents,
    draw_windows,
)
from prunecomp.engine.placement import free_host_memory
from prunecomp.io.values import whole
from prunecomp.model.source import ModelSource


def calibration_windows(
    model_source: ModelSource,
    source: Any,
    samples: int,
    seqlen: int | None,
    seed: int,
    documents: bool = False,
    bos: str = "auto",
) -> Windows:
    """Windows of one length cut from the whole text, or ``documents`` one by one. Raises :class:`OptionError` or
    :class:`DataError`."""
    length = choose_seqlen(seqlen, model_source.config)
    whole("--samples", samples, 1)
    if documents:
        read = read_documents(source, model_source.tokenize, model_source.vocab_size, bos)
        windows = draw_documents(read, samples, length, seed)
        check_length(model_source, windows.seqlen)
        return windows
    tokens = read_source(source, model_source.tokenize, model_source.vocab_size, bos)
    check_length(model_source, tokens.longest(length), tokens.tokens.ndim == 2)
    return draw_windows(tokens, samples, length, seed, free_host_memory())


def evaluation_windows(model_source: ModelSource, source: Any, seqlen: int | None, bos: str = "auto") -> Windows:
    length = choose_seqlen(seqlen, model_source.config)
    tokens = read_source(source, model_source.tokenize, model_source.vocab_size, bos)
    check_length(model_source, tokens.longest(length), tokens.tokens.ndim == 2)
    return consecutive_windows(tokens, length)


def check_length(model_source: ModelSource, length: int, given: bool = False) -> None:
    """Raise :class:`OptionError`, or warn, where a window of ``length`` tokens is too long for the model; ``given``
    says that it came as such."""
    check_context(length, model_source.position_rows, context_of(model_source.config), given)
