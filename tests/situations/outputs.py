"""The command line in this process, for situations of outputs, journals and streams."""

from __future__ import annotations

from typing import Any

from tests.command_line import invoke as run


def invoke(*arguments: object) -> Any:
    """How ``prunecomp ARGUMENTS`` ended, with ``exit_code``, ``stdout`` and ``stderr``, which is one line."""
    ended = run(*arguments)
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended
