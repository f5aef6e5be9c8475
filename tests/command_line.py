"""The command line called in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prunecomp.cli import call


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str
    exception: BaseException | None = None
    """What it let through, which is nothing if all is well."""

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def invoke(*words: object, stdin: str | bytes | None = None) -> Result:
    """``prunecomp WORDS``."""
    code, exception = 1, None
    with streams(stdin) as (stdout, stderr):
        try:
            code = call([str(word) for word in words])
        except Exception as error:
            exception = error
    return Result(code, *(each.getvalue().decode() for each in (stdout, stderr)), exception)


@contextmanager
def streams(stdin: str | bytes | None) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Within, standard input is what is given, and output is kept."""
    given = stdin.encode() if isinstance(stdin, str) else stdin or b""
    kept = io.BytesIO(), io.BytesIO()
    before = sys.stdin, sys.stdout, sys.stderr
    texts: list[Any] = [io.TextIOWrapper(stream, encoding="utf-8", write_through=True) for stream in kept]
    sys.stdin, sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"), *texts
    try:
        yield kept
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
        for text in texts:
            text.detach()
