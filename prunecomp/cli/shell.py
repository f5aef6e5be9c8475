"""What all commands share: the application, errors made into exit codes, and where output goes."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.text import Text

from prunecomp.checkpoint.export import RECORD
from prunecomp.cli.options import EXIT_CODES
from prunecomp.engine.progress import Progress
from prunecomp.errors import OutputError, PrunecompError, PrunecompWarning
from prunecomp.io.escape import one_line
from prunecomp.io.plain import json_text
from prunecomp.io.starting import Stopped, stoppable, unwritten
from prunecomp.report.comparison import RECORD as MEASURED
from prunecomp.report.console import Console
from prunecomp.report.progress import RichProgress

app = typer.Typer(
    help="Prune layers from large language models and compensate for them without training (Prune&Comp).",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class _Escaped(logging.LogRecord):
    """What another library logs: it quotes configs and names as they come."""

    def getMessage(self) -> str:
        return one_line(super().getMessage())


@contextmanager
def logs_escaped() -> Iterator[None]:
    """Within, what is logged is text on one line."""
    usual = logging.getLogRecordFactory()
    logging.setLogRecordFactory(_Escaped)
    try:
        yield
    finally:
        logging.setLogRecordFactory(usual)


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Turn an error into its message and exit code."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        console = Console(stderr=True, soft_wrap=True)

        def show(
            message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
            line: str | None = None,
        ) -> None:  # fmt: skip
            if issubclass(category, PrunecompWarning):
                console.print(Text.assemble(("warning:", "bold yellow"), f" {one_line(message)}"))
            else:
                usual(one_line(message), category, filename, lineno, file, line)

        out: Path | None = kwargs.get("out")
        try:
            with stoppable(), logs_escaped(), warnings.catch_warnings():
                usual, warnings.showwarning = warnings.showwarning, show
                command(*args, **kwargs)
                delivered(out)
        except PrunecompError as error:
            # In one write: other processes of the job have something to say at the same moment.
            console.print(Text.assemble(("error:", "bold red"), f" {type(error).__name__}: {one_line(error)}"))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as stop:
            word, code = (stop.word, stop.exit_code) if isinstance(stop, Stopped) else ("interrupted", 130)
            console.print(Text(f"{word}; {left_behind(out)}"))
            raise typer.Exit(code) from None

    return run


def delivered(out: Path | None) -> None:
    """Raise :class:`OutputError` where what was printed did not arrive, and is not in ``out`` as well: then warn."""
    reason = unwritten(sys.stdout)
    if reason is not None and out is None:
        raise OutputError(f"standard output could not be written to ({reason})")
    if reason is not None:
        warnings.warn(f"standard output could not be written to ({reason}); {out} is whole", PrunecompWarning, 2)


def left_behind(out: Path | None) -> str:
    """What is true of a command that was stopped."""
    if out is None:
        return "nothing was written."
    if (out / RECORD).is_file():
        return f"{out} holds a whole checkpoint."
    kept = f"; what is measured is in {out}" if (out / MEASURED).is_file() else ""
    return f"no checkpoint was written{kept}. prune and compare go on with the same command and --resume."


def progress_on_stderr() -> Progress:
    return RichProgress(Console(stderr=True))


def print_json(value: Any) -> None:
    sys.stdout.write(json_text(value, ascii_only=True) + "\n")
