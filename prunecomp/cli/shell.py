"""What all commands share: the application, errors made into exit codes, and where output goes."""

from __future__ import annotations

import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cyclopts import App, CycloptsError
from rich.text import Text

import prunecomp
from prunecomp.engine.progress import silent
from prunecomp.errors import OptionError, OutputError, PrunecompError, PrunecompWarning
from prunecomp.io.escape import one_line
from prunecomp.io.plain import json_text
from prunecomp.io.progress import told as lines_or_bars
from prunecomp.io.starting import Stopped, unwritten
from prunecomp.names import COMPARISON, RECORD
from prunecomp.report.console import Console

if TYPE_CHECKING:
    from prunecomp.engine.parallel import Job

EXIT_CODES = (
    "Exit codes: 0 done, 2 options, 3 model, 4 data, 5 non-finite values, 6 fold refused, 7 output, "
    "8 another process lost, 9 journal, 10 target missed, 130 interrupted."
)

app = App(
    name="prunecomp",
    help="Prune layers from large language models and compensate for them without training (Prune&Comp).",
    help_epilogue=EXIT_CODES,
    help_format="plaintext",
    version=lambda: prunecomp.__version__,
)
app.register_install_completion_command()


def call(words: Sequence[str]) -> int:
    """Run the command that ``words`` are, and return its exit code."""
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_none")
    except CycloptsError as error:
        return failed(OptionError(str(error)), "--json" in words)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def failed(error: PrunecompError, as_json: bool) -> int:
    """Tell of an error, and return its exit code."""
    kind = type(error).__name__
    # In one write: other processes of the job have something to say at the same moment.
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error:", "bold red"), f" {kind}: {one_line(error)}"))
    if as_json:
        print_json({"error": {"kind": kind, "message": str(error), "exit_code": error.exit_code}})
    return error.exit_code


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

        out = None if kwargs.get("out") is None else Path(kwargs["out"])
        try:
            with logs_escaped(), warnings.catch_warnings():
                usual, warnings.showwarning = warnings.showwarning, show
                command(*args, **kwargs)
                delivered(out)
        except PrunecompError as error:
            raise SystemExit(failed(error, kwargs.get("json") is True)) from None
        except KeyboardInterrupt as stop:
            word, code = (stop.word, stop.exit_code) if isinstance(stop, Stopped) else ("interrupted", 130)
            console.print(Text(f"{word}; {left_behind(out)}"))
            raise SystemExit(code) from None

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
    some = len(list(out.glob(f"*/{RECORD}")))
    if some:
        return f"{some} whole checkpoints are in {out}. The same command and --resume goes on."
    kept = f"; what is measured is in {out}" if (out / COMPARISON).is_file() else ""
    return f"no checkpoint was written{kept}. prune and compare go on with the same command and --resume."


def as_typed() -> str:
    """The command, to be given again."""
    return shlex.join(["prunecomp", *(word for word in sys.argv[1:] if word != "--resume")])


def told(job: Job) -> dict[str, Any]:
    """What a process of a job is told beside the options: its device, and whom to tell how far it is."""
    return {"device": job.device, "progress": lines_or_bars(Console(stderr=True)) if job.leads else silent}


def print_json(value: Any) -> None:
    sys.stdout.write(json_text(value, ascii_only=True) + "\n")
