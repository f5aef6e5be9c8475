"""The journal of a run: what was decided, round by round, so that a killed run goes on where it stopped.

A round's decision and its scale are all that the next one needs beside the model and the data: states are recomputed to
the same bits. So the journal is small, and is replaced as a whole, atomically, at the end of each round.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunecomp.errors import JournalError
from prunecomp.result import RoundRecord

FORMAT = 1


def journal_path(out: Path) -> Path:
    """Where the journal of a run that exports to ``out`` lies: beside it, hidden."""
    out = Path(out).absolute()
    return out.with_name(f".{out.name}.journal.json")


class Journal:
    """An open journal. ``identity`` is everything that determines the run's choices; ``rounds`` those made so far.

    With ``writes`` off (every process but the first) it is never written.
    """

    def __init__(
        self, path: Path, identity: dict[str, Any], rounds: Sequence[RoundRecord] = (), *, writes: bool = True
    ) -> None:
        self.path = path
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))  # as it would come back
        self.rounds = list(rounds)
        self._writes = writes

    @classmethod
    def open(cls, path: Path, identity: dict[str, Any], *, resume: bool) -> Journal:
        """Start a journal, or go on with the one at ``path``; one in which nothing is decided yet is no obstacle.

        Raises :class:`JournalError` if there is one and ``resume`` is off, if it cannot be read, or if it is of
        another run, naming the differences.
        """
        held = cls._read(path) if path.exists() else None
        if held is None or not held.rounds:
            journal = cls(path, identity)
            journal._write()
            return journal
        if not resume:
            raise JournalError(
                f"{path} is the journal of a run that was not finished: go on with it by --resume, or remove it"
            )
        journal = cls(path, identity, held.rounds)
        differences = _differences(held.identity, journal.identity)
        if differences:
            raise JournalError(
                f"{path} is of another run: " + "; ".join(differences) + ". Give the same model, data and options, or "
                "remove it to start again"
            )
        return journal

    def followed(self, identity: dict[str, Any]) -> Journal:
        """The same for a process that does not write. Raises :class:`JournalError` if it runs on something else."""
        follower = Journal(self.path, identity, self.rounds, writes=False)
        differences = [
            line for key in ("model", "calibration", "options")
            for line in _differences(self.identity.get(key), follower.identity.get(key), key)
        ]  # fmt: skip
        if differences:
            raise JournalError("this process does not run what the first one runs: " + "; ".join(differences))
        return follower

    @classmethod
    def _read(cls, path: Path) -> Journal:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            content = held["run"]
            if held["format"] != FORMAT or held["sha256"] != _digest(content):
                raise ValueError("another format, or changed since it was written")
            return cls(path, content["identity"], [_round(entry) for entry in content["rounds"]])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise JournalError(f"{path} cannot be read as a journal ({error!r}): remove it to start again") from error

    def append(self, record: RoundRecord) -> None:
        """Add a round; it is on disk when this returns."""
        self.rounds.append(record)
        if self._writes:
            self._write()

    def remove(self) -> None:
        """The run is complete and its result safe."""
        if self._writes:
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        beside = self.path.with_name(self.path.name + ".partial")
        run = json.loads(json.dumps({"identity": self.identity, "rounds": [asdict(r) for r in self.rounds]}))
        content = {"format": FORMAT, "sha256": _digest(run), "run": run}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(beside, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise JournalError(f"{self.path} cannot be written ({error})") from error


def _round(entry: dict[str, Any]) -> RoundRecord:
    # JSON has no integer keys; floats come back to the bit.
    return RoundRecord(**{**entry, "scores": {int(layer): value for layer, value in entry["scores"].items()}})


def _digest(run: Any) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def _differences(earlier: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(set(earlier) | set(now))
            for line in _differences(earlier.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if earlier == now else [f"{name} was {json.dumps(earlier)} and is {json.dumps(now)}"]
