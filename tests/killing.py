"""Ends a process at a chosen point of a run, and tells which phase a run is in.

``python -m tests.killing RANK POINT COUNT DEED ARGUMENTS...`` is the command line with a rank that comes to harm.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import prunecomp.checkpoint.writer
import prunecomp.cli
import prunecomp.pruning.pruner
import prunecomp.pruning.running
from prunecomp.model.decoder import Decoder
from prunecomp.pruning.journal import Journal
from prunecomp.pruning.pruner import Pruner
from prunecomp.pruning.result import PruneResult

POINTS: dict[str, tuple[Any, str]] = {
    "layer": (Decoder, "call"),
    "journal": (Journal, "_write"),
    "journal-replaced": (Path, "replace"),
    "shard": (prunecomp.checkpoint.writer, "save_file"),
    "rename": (Path, "rename"),
    "journal-removed": (Journal, "remove"),
    "perplexity": (prunecomp.pruning.running, "judged"),
}
PHASES = ("starting", "scoring", "between rounds", "perplexity", "export", "done")

DEEDS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    "exit": lambda: os._exit(3),
}


@dataclass(frozen=True)
class Harm:
    """What happens at the ``count``-th passing of a point, before or ``after`` the work done there."""

    point: str
    count: int = 1
    after: bool = False
    deed: str = "kill"

    def arm(self) -> None:
        owner, name = POINTS[self.point]
        original = getattr(owner, name)
        passed: list[int] = []

        @wraps(original)
        def harmed(*args: Any, **kwargs: Any) -> Any:
            passed.append(1)
            due = len(passed) == self.count
            if due and not self.after:
                DEEDS[self.deed]()
            value = original(*args, **kwargs)
            if due and self.after:
                if self.point == "shard":  # half of it
                    os.truncate(args[1], os.path.getsize(args[1]) // 2)
                DEEDS[self.deed]()
            return value

        setattr(owner, name, harmed)


def tell_phases(tell: Callable[[str], None]) -> None:
    """Call ``tell`` with the phase whenever it changes."""
    for owner, name, during, afterwards in (
        (Pruner, "score", "scoring", "between rounds"),
        (prunecomp.pruning.running, "judged", "perplexity", "perplexity"),
        (PruneResult, "save", "export", "done"),
    ):
        setattr(owner, name, _telling(getattr(owner, name), tell, during, afterwards))


def _telling(original: Any, tell: Callable[[str], None], during: str, afterwards: str) -> Any:
    @wraps(original)
    def told(*args: Any, **kwargs: Any) -> Any:
        tell(during)
        value = original(*args, **kwargs)
        tell(afterwards)
        return value

    return told


if __name__ == "__main__":
    rank, point, count, deed = sys.argv[1:5]
    sys.argv[1:] = sys.argv[5:]
    if os.environ["RANK"] == rank:
        Harm(point, int(count), deed=deed).arm()
    prunecomp.cli.main()
