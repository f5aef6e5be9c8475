"""The journal of a run: what was decided, round by round, so that a killed run goes on where it stopped.

A round's decision and its scale are all that the next one needs beside the model and the data: states are recomputed to
the same bits. So the journal is small, and is replaced as a whole, atomically, at the end of each round. Weights that a
compensation has replaced are larger: they lie beside it, a file for each round that replaced any.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from prunecomp.checkpoint.claim import OF_A_JOURNAL, claimed, placed, sync, sync_name
from prunecomp.engine.latency import Latency
from prunecomp.errors import JournalError, PrunecompError, PrunecompWarning
from prunecomp.io.plain import as_fields_of, brief, parse_json
from prunecomp.model.stack import LayerStack, Overlay
from prunecomp.pruning.result import RoundRecord

FORMAT = 4
REMEDY = "remove it to start again"
Overlays = Mapping[int, Overlay]


def journal_path(out: Path) -> Path:
    """Where the journal of a run that exports to ``out`` lies: beside it, hidden."""
    out = placed(out)
    return out.parent / f".{out.name}.journal.json"  # the root has no name to put another in the place of


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
        self._data = b""
        self.latency: Latency | None = None
        """What the layers were measured to take, where that decides how many go: a clock never says the same again."""

    @classmethod
    def open(cls, path: Path, identity: dict[str, Any], *, resume: bool) -> Journal:
        """Start a journal, or go on with the one at ``path``; one in which nothing is decided yet is no obstacle.
        Nothing is written before there is something to write.

        Raises :class:`JournalError` if there is one and ``resume`` is off, if it cannot be read, or if it is of
        another run, naming the differences.
        """
        held = cls._read(path) if os.path.lexists(path) else None
        if held is None or not held.rounds:
            return cls(path, identity)
        if not resume:
            raise JournalError(
                f"{path} is the journal of a run that was not finished: go on with it by --resume, or remove it"
            )
        journal = cls(path, identity, held.rounds, held.overlays, held._digests)
        journal._data, journal.latency = held._data, held.latency
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
            if not path.is_file():  # a pipe would be waited for
                raise ValueError("it is no file")
            data = path.read_bytes()
            held = as_fields_of(_File, parse_json(data, "it", JournalError))
            if held["format"] != FORMAT or held["sha256"] != _digest(held["run"]):
                raise ValueError("another format, or changed since it was written")
            timed = isinstance(held["run"], dict) and "latency" in held["run"]
            run = as_fields_of(_TimedRun if timed else _Run, held["run"])
            rounds = [RoundRecord(**as_fields_of(RoundRecord, entry)) for entry in run["rounds"]]
            overlays = {
                number: _read_weights(_weights_path(path, number), digest) for number, digest in run["weights"].items()
            }
            journal = cls(path, run["identity"], rounds, overlays, run["weights"])
            if timed:
                journal.latency = Latency(**as_fields_of(Latency, run["latency"]))
        except (OSError, ValueError, RecursionError, SafetensorError, JournalError) as error:
            raise JournalError(f"{path} cannot be read as a journal ({brief(str(error))}): {REMEDY}") from None
        journal._data = data
        return journal

    def check(self, num_layers: int, candidates: Collection[int], layers: int) -> None:
        """Raise :class:`JournalError` unless its rounds can be ones of a run that removes so many ``layers``."""
        stack = LayerStack.dense(num_layers)
        try:
            for seconds in () if self.latency is None else (self.latency.prefill, self.latency.decode):
                if len(seconds) != num_layers or not all(math.isfinite(one) and one > 0 for one in seconds):
                    raise ValueError("layers that take no time")
            for number, made in enumerate(self.rounds):
                block = tuple(made.block)
                if stack.neighbours(block) != block or made.layer != block[0] or not set(block) <= set(candidates):
                    raise ValueError(f"layers {list(block)} cannot go")
                if not (math.isfinite(made.scale) and made.scale > 0):
                    raise ValueError(f"a scale of {made.scale}")
                stack = stack.remove_block(block)
                if not set(self.overlays.get(number, ())) <= set(stack.alive):
                    raise ValueError("weights of layers that are gone")
            if len(stack.removed) > layers or not set(self.overlays) <= set(range(len(self.rounds))):
                raise ValueError("more than was asked for")
        except (ValueError, PrunecompError) as error:
            raise JournalError(f"{self.path} holds what cannot be ({brief(str(error))}): {REMEDY}") from None

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

    def time(self, latency: Latency) -> None:
        """Hold what layers were measured to take: on disk with the next round, or now beside those that are there."""
        self.latency = latency
        if self.rounds and self._writes:
            self._write()

    @staticmethod
    def claimed(path: Path) -> AbstractContextManager[object]:
        """Have this process alone use the journal at ``path``."""
        return claimed(path, JournalError, "give another journal", OF_A_JOURNAL)

    def remove(self) -> None:
        """The run is complete and its result safe. What another run has put there since stays."""
        if not self._writes:
            return
        try:
            with self.claimed(self.path):
                if self.path.is_file() and self.path.read_bytes() == self._data:
                    self.path.unlink()
                    for number in range(len(self.rounds) + 1):  # a kill can leave the next round's
                        weights = _weights_path(self.path, number)
                        weights.unlink(missing_ok=True)
                        partial(weights).unlink(missing_ok=True)
        except (OSError, JournalError) as error:
            warnings.warn(f"the journal {self.path} stays ({error})", PrunecompWarning, stacklevel=2)

    def _write(self) -> None:
        rounds = [asdict(r) for r in self.rounds]
        timed = {} if self.latency is None else {"latency": asdict(self.latency)}
        run = json.loads(json.dumps({"identity": self.identity, "rounds": rounds, "weights": self._digests, **timed}))
        content = {"format": FORMAT, "sha256": _digest(run), "run": run}
        self._data = json.dumps(content, indent=1).encode()
        self._put(self.path, self._data)

    def _put(self, path: Path, data: bytes) -> None:
        """Have ``path`` hold ``data``, or what it held before."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
        except OSError as error:
            raise JournalError(f"{path} cannot be written ({error})") from error


@dataclass(frozen=True)
class _File:
    """What a journal is on disk."""

    format: int
    sha256: str
    run: Any


@dataclass(frozen=True)
class _Run:
    """What it tells."""

    identity: dict[str, Any]
    rounds: list[Any]
    weights: dict[int, str]


@dataclass(frozen=True)
class _TimedRun(_Run):
    """Of one whose goal is a latency."""

    latency: Any


def partial(path: Path) -> Path:
    """What :func:`write_whole` fills beside ``path``; a kill can leave it there."""
    return path.with_name(path.name + ".partial")


def write_whole(path: Path, data: bytes) -> None:
    """Have ``path`` hold ``data``, on disk when this returns, or what it held before, whenever the process ends."""
    beside = partial(path)
    try:
        with open(beside, "wb") as file:
            file.write(data)
        sync(beside)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    sync_name(path)


def _weights_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}.safetensors")


def _read_weights(path: Path, digest: str) -> dict[int, Overlay]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path.name} has changed since it was written")
    by_layer: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load(data).items():
        layer, _, name = key.partition(".")
        by_layer.setdefault(int(layer), {})[name] = tensor
    return {layer: Overlay(tensors) for layer, tensors in by_layer.items()}


def _digest(run: Any) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def differences(earlier: Any, now: Any, name: str = "") -> list[str]:
    """Where two identities differ, one sentence each."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(set(earlier) | set(now))
            for line in differences(earlier.get(key), now.get(key), f"{name}.{brief(key)}" if name else brief(key))
        ]
    return [] if earlier == now else [f"{name} was {brief(json.dumps(earlier))} and is {brief(json.dumps(now))}"]
