"""From what is given as data to the windows that a model is run on."""

from __future__ import annotations

from typing import Any

from prunecomp.data.sources import read_documents, read_source
from prunecomp.data.windows import (
    Windows,
    check_context,
    check_count,
    choose_seqlen,
    consecutive_windows,
    context_of,
    draw_documents,
    draw_windows,
)
from prunecomp.engine.placement import free_host_memory
from prunecomp.errors import OptionError
from prunecomp.subject import Subject

TOKEN_NBYTES = 8
"""Windows are int64."""


def calibration_windows(
    subject: Subject, source: Any, samples: int, seqlen: int | None, seed: int, documents: bool = False
) -> Windows:
    """Windows of one length cut from the whole text, or ``documents`` one by one. Raises :class:`OptionError` or
    :class:`DataError`."""
    length = choose_seqlen(seqlen, subject.config)
    check_count("--samples", samples, 1)
    if documents:
        read = read_documents(source, subject.tokenize, subject.vocab_size)
        return in_context(subject, draw_documents(read, samples, length, seed))
    tokens = read_source(source, subject.tokenize, subject.vocab_size)
    if tokens.tokens.ndim == 1 and samples * length * TOKEN_NBYTES > (room := free_host_memory()):
        raise OptionError(
            f"--samples {samples} --seqlen {length}: the windows alone take {samples * length * TOKEN_NBYTES:,} bytes, "
            f"and {room:,} are free: give at most --samples {max(1, room // (2 * length * TOKEN_NBYTES))}"
        )
    return in_context(subject, draw_windows(tokens, samples, length, seed))


def evaluation_windows(subject: Subject, source: Any, seqlen: int | None) -> Windows:
    length = choose_seqlen(seqlen, subject.config)
    tokens = read_source(source, subject.tokenize, subject.vocab_size)
    return in_context(subject, consecutive_windows(tokens, length))


def in_context(subject: Subject, windows: Windows) -> Windows:
    """``windows``, once it is known that the model has positions for them."""
    check_context(windows.seqlen, subject.position_rows, context_of(subject.config))
    return windows
