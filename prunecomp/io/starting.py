"""What the program does before its imports, which take seconds: streams that are there, signals that end it politely.

A process that only imports the package is left as it is.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WORDS = {signal.SIGINT: "interrupted"}


class Stopped(KeyboardInterrupt):
    """A signal that asks the program to end; everything on the way out is tidied up."""

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signum)
        self.word = WORDS.get(signal.Signals(signum), "told to stop")
        self.exit_code = 128 + signum


def is_program() -> bool:
    """Whether this process is the command line: the installed script, or ``python -m prunecomp``."""
    if getattr(sys, "argv", [""])[:1] == ["-m"]:  # the module is still being looked for
        return "-mprunecomp" in sys.orig_argv or ("-m", "prunecomp") in pairwise(sys.orig_argv)
    return Path(getattr(sys, "argv", [""])[0]).name in ("prunecomp", "prunecomp.exe")


def begin() -> None:
    """Open what of the standard streams is closed, for else the next file would take its place; and end without a
    traceback on a signal while nothing is begun."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    handle(_end)


def _end(signum: int, frame: FrameType | None) -> None:
    os.write(2, f"{Stopped(signum).word}; nothing was begun\n".encode())
    os._exit(128 + signum)


def _stop(signum: int, frame: FrameType | None) -> None:
    handle(signal.SIG_IGN)  # what follows is the tidying up
    raise Stopped(signum)


def handle(handler: Any) -> dict[signal.Signals, Any]:
    """Handle the signals that end a program so, but those that are ignored; returns what was before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    asked = [each for each in SIGNALS if signal.getsignal(each) not in (signal.SIG_IGN, None)]
    return {each: signal.signal(each, handler) for each in asked}


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, a signal that ends a program raises :class:`Stopped`."""
    before = handle(_stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class Output(io.FileIO):
    """A stream that remembers why it could not be written to, and goes on: the work does not depend on its reader."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        if self.failed is None:
            try:
                written: int | None = super().write(data)
                while written is None:  # a pipe that does not wait, as some parents leave it, and that is full
                    select.select([], [self], [])
                    written = super().write(data)
                return written
            except OSError as error:
                self.failed = error
        return len(data)


def tolerant(stream: TextIO | None) -> TextIO:
    """``stream`` as one that takes every character and never fails."""
    if stream is None:  # closed when the program began
        return open(os.devnull, "w", encoding="utf-8")
    stream.flush()
    raw = Output(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors="backslashreplace",
        line_buffering=bool(getattr(stream, "line_buffering", False)),
    )  # fmt: skip


def unwritten(stream: TextIO) -> str | None:
    """Why what was printed did not arrive; None where it did, or where its reader had seen enough."""
    stream.flush()
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    failed = raw.failed if isinstance(raw, Output) else None
    return None if failed is None or failed.errno == errno.EPIPE else str(failed.strerror)


def run(program: Callable[[], None]) -> None:
    """Run ``program`` over streams that never fail; what comes when it is done changes nothing more."""
    sys.stdout, sys.stderr = tolerant(sys.stdout), tolerant(sys.stderr)
    try:
        program()
    finally:
        handle(signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()


if is_program():
    begin()
