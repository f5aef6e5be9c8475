"""Commands over odd streams, in processes forked from one that has imported everything.

``python -m tests.situations.streams FOLDER`` (one of ``make_base``) reads a JSON list of cases, each with the
``arguments`` of a command and what its ``stdout`` and ``stderr`` are, and prints how each ended.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import prunecomp.cli
from tests.forks import warm_up


def take(descriptor: int, kind: str, log: str) -> None:
    """Make a standard stream of this process ``full``, ``broken``, ``closed``, ``ascii`` or, as ``file``, the log."""
    name = {1: "stdout", 2: "stderr"}[descriptor]
    if kind == "closed":
        os.close(descriptor)
        setattr(sys, name, None)
        return
    reader, writer = os.pipe()
    os.close(reader)
    target = {"full": "/dev/full", "file": log, "ascii": log}.get(kind)
    os.dup2(writer if target is None else os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    if kind == "ascii":
        getattr(sys, name).reconfigure(encoding="ascii", errors="strict")


def ended(case: dict[str, Any], folder: str) -> dict[str, Any]:
    logs = {1: os.path.join(folder, "stdout"), 2: os.path.join(folder, "stderr")}
    for log in logs.values():
        open(log, "w").close()
    process = os.fork()
    if process == 0:
        take(1, case.get("stdout", "file"), logs[1])
        take(2, case.get("stderr", "file"), logs[2])
        code = 1
        try:
            sys.argv = ["prunecomp", *case["arguments"]]
            prunecomp.cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return {"code": code, **{name: open(logs[number]).read() for name, number in (("stdout", 1), ("stderr", 2))}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm_up(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps([ended(case, folder) for case in json.load(sys.stdin)]))
