"""The journal of a run: what was decided, round by round, so that a killed run goes on where it stopped.

A round's decision and its scale are all that the next one needs beside the model and the data: states are recomputed to
the same bits. So the journal is small, and is replaced as a whole, atomically, at the end of each round. Weights that a
compensation has replaced are larger: they lie beside it, a file for each round that replaced any.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from prunecomp.errors import JournalError
from prunecomp.model.stack import Overlay
from prunecomp.result import RoundRecord

FORMAT = 2
Overlays = Mapping[int, Overlay]


def journal_path(out: Path) -> Path:
    """Where the journal of a run that exports to ``out`` lies: beside it, hidden."""
    out = Path(out).absolute()
    return out.with_name(f".{out.name}.journal.json")


class Journal:
    """An open journal. ``identity`` is everything that determines the run's choices; ``rounds`` those made so far, and
    ``overlays`` the weights that they replaced, by the number of the round.

    With ``writes`` off (every process but the first) it is never written.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        rounds: Sequence[RoundRecord] = (),
        overlays: Mapping[int, Overlays] | None = None,
        digests: Mapping[int, str] | None = None,
        *,
        writes: bool = True,
    ) -> None:
        self.path = path
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))  # as it would come back
        self.rounds = list(rounds)
        self.overlays = dict(overlays or {})
        self._digests = dict(digests or {})
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
            _remove_weights(path)
            journal._write()
            return journal
        if not resume:
            raise JournalError(
                f"{path} is the journal of a run that was not finished: go on with it by --resume, or remove it"
            )
        journal = cls(path, identity, held.rounds, held.overlays, held._digests)
        differing = differences(held.identity, journal.identity)
        if differing:
            raise JournalError(
                f"{path} is of another run: " + "; ".join(differing) + ". Give the same model, data and options, or "
                "remove it to start again"
            )
        return journal

    def followed(self, identity: dict[str, Any]) -> Journal:
        """The same for a process that does not write. Raises :class:`JournalError` if it runs on something else."""
        follower = Journal(self.path, identity, self.rounds, self.overlays, writes=False)
        differing = [
            line for key in ("model", "calibration", "options")
            for line in differences(self.identity.get(key), follower.identity.get(key), key)
        ]  # fmt: skip
        if differing:
            raise JournalError("this process does not run what the first one runs: " + "; ".join(differing))
        return follower

    @classmethod
    def _read(cls, path: Path) -> Journal:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            content = held["run"]
            if held["format"] != FORMAT or held["sha256"] != _digest(content):
                raise ValueError("another format, or changed since it was written")
            digests = {int(number): digest for number, digest in content["weights"].items()}
            overlays = {number: _read_weights(_weights_path(path, number), digests[number]) for number in digests}
            return cls(path, content["identity"], [_round(entry) for entry in content["rounds"]], overlays, digests)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise JournalError(f"{path} cannot be read as a journal ({error!r}): remove it to start again") from error

    def append(self, record: RoundRecord, overlays: Overlays | None = None) -> None:
        """Add a round, with the weights that it replaced; it is on disk when this returns."""
        number = len(self.rounds)
        self.rounds.append(record)
        if overlays:
            self.overlays[number] = overlays
        if not self._writes:
            return
        if overlays:
            tensors = {f"{layer}.{name}": tensor for layer, o in overlays.items() for name, tensor in o.tensors.items()}
            data = save(tensors)
            self._digests[number] = hashlib.sha256(data).hexdigest()
            self._put(_weights_path(self.path, number), data)
        self._write()

    def remove(self) -> None:
        """The run is complete and its result safe."""
        if self._writes:
            remove_journal(self.path)

    def _write(self) -> None:
        rounds = [asdict(r) for r in self.rounds]
        run = json.loads(json.dumps({"identity": self.identity, "rounds": rounds, "weights": self._digests}))
        content = {"format": FORMAT, "sha256": _digest(run), "run": run}
        self._put(self.path, json.dumps(content, indent=1).encode())

    def _put(self, path: Path, data: bytes) -> None:
        """Have ``path`` hold ``data``, or what it held before."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
        except OSError as error:
            raise JournalError(f"{path} cannot be written ({error})") from error


def partial(path: Path) -> Path:
    """What :func:`write_whole` fills beside ``path``; a kill can leave it there."""
    return path.with_name(path.name + ".partial")


def write_whole(path: Path, data: bytes) -> None:
    """Have ``path`` hold ``data``, on disk when this returns, or what it held before, whenever the process ends."""
    beside = partial(path)
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


WEIGHTS = ".safetensors"


def remove_journal(path: Path) -> None:
    """Remove a journal and the weights beside it: its run is complete."""
    path.unlink(missing_ok=True)
    _remove_weights(path)


def _remove_weights(path: Path) -> None:
    for weights in path.parent.glob(f"{path.stem}.*{WEIGHTS}*"):
        weights.unlink()


def _weights_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number}{WEIGHTS}")


def _read_weights(path: Path, digest: str) -> dict[int, Overlay]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path.name} has changed since it was written")
    by_layer: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load(data).items():
        layer, _, name = key.partition(".")
        by_layer.setdefault(int(layer), {})[name] = tensor
    return {layer: Overlay(tensors) for layer, tensors in by_layer.items()}


def _round(entry: dict[str, Any]) -> RoundRecord:
    # JSON has no integer keys; floats come back to the bit.
    return RoundRecord(**{**entry, "scores": {int(layer): value for layer, value in entry["scores"].items()}})


def _digest(run: Any) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def differences(earlier: Any, now: Any, name: str = "") -> list[str]:
    """Where two identities differ, one sentence each."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(set(earlier) | set(now))
            for line in differences(earlier.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if earlier == now else [f"{name} was {json.dumps(earlier)} and is {json.dumps(now)}"]
