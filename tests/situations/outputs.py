"""The command line in this process, for situations of outputs, journals and streams."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from prunecomp.cli import app


def invoke(*arguments: object) -> Any:
    """How ``prunecomp ARGUMENTS`` ended, with ``exit_code``, ``stdout`` and ``stderr``, which is one line."""
    ended = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended
