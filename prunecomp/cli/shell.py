"""What all commands share: the application, errors made into exit codes, and where output goes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TextIO

import typer
from rich.text import Text

from prunecomp.cli.options import EXIT_CODES
from prunecomp.engine.progress import Progress
from prunecomp.errors import PrunecompError, PrunecompWarning
from prunecomp.escape import one_line
from prunecomp.plain import json_text
from prunecomp.report.console import Console
from prunecomp.report.progress import RichProgress

app = typer.Typer(
    help="Prune layers from large language models and compensate for them without training (Prune&Comp).",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
                usual(message, category, filename, lineno, file, line)

        try:
            with warnings.catch_warnings():
                usual, warnings.showwarning = warnings.showwarning, show
                command(*args, **kwargs)
        except PrunecompError as error:
            # In one write: other processes of the job have something to say at the same moment.
            console.print(Text.assemble(("error:", "bold red"), f" {type(error).__name__}: {one_line(error)}"))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            console.print(
                "interrupted; no checkpoint was written. prune and compare go on with the same command and --resume."
            )
            raise typer.Exit(130) from None

    return run


def progress_on_stderr() -> Progress:
    return RichProgress(Console(stderr=True))


def print_json(value: Any) -> None:
    sys.stdout.write(json_text(value, ascii_only=True) + "\n")
