"""A run that goes as far as a target lets it: after each round the model that would be written is looked at."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from prunecomp.checkpoint.writer import renamed
from prunecomp.data.windows import Windows
from prunecomp.engine.latency import Latency, share
from prunecomp.engine.placement import Placement
from prunecomp.engine.progress import Progress, Whole
from prunecomp.engine.run import Run
from prunecomp.engine.states import Tier
from prunecomp.engine.streams import BOUNDARIES
from prunecomp.errors import NumericalError, OptionError, TargetError
from prunecomp.evaluation.agreement import LastStates, Standing, TextQuality, on_text, quality_of, seen, with_room
from prunecomp.io.values import listed
from prunecomp.model.source import ModelSource
from prunecomp.model.stack import LayerStack
from prunecomp.options.aims import Aim
from prunecomp.pruning.pruner import Pruner
from prunecomp.pruning.result import Gate, RoundRecord, TargetRecord
from prunecomp.pruning.rounds import Stop
from prunecomp.repair import Outcome

Fit = Callable[[LayerStack], tuple[LayerStack, Outcome | None]]
Look = Callable[[LayerStack], dict[str, float]]
"""What a model has of some limits, by their names."""
COUNTED = ("params", "size", "layers")
GATES = "gates"
"""What looking is told and timed as."""


class Gates:
    """What a run asks after each round; it goes on until a limit is broken or all goals are reached.

    ``fit`` repairs a stack as it would be written, and ``looks`` are what it is held to then, if there are limits;
    where memory is ``short`` the pruner gives up its states first. ``progress`` is told what of it is under way.
    """

    def __init__(
        self,
        pruner: Pruner,
        source: ModelSource,
        target: Sequence[Aim],
        fit: Fit,
        looks: Sequence[Look],
        latency: Latency | None,
        short: bool,
        progress: Whole,
    ) -> None:
        self._pruner, self._source, self._target, self._latency = pruner, source, target, latency
        self._fit, self._looks, self._short, self._progress = fit, looks, short, progress
        self._gates: list[Gate] = []
        self._held: tuple[Stop, Gate] | None = None
        self._fitted: float = 0

    def __call__(self, rounds: Sequence[RoundRecord]) -> bool:
        pruner, stack = self._pruner, self._pruner.stack
        stop = Stop(stack, list(rounds), pruner.layer_forwards, time.perf_counter())
        found: dict[str, float] = {name: measure(self._source, name, stack.alive) for name in COUNTED}
        if self._latency is not None:
            found["latency"] = self._latency.ratio(stack.alive)
        if self._looks:
            if self._short:
                pruner.release()
            with self._progress.aside("repairing"):
                fitted, outcome = self._fit(stack)
            self._fitted += 0 if outcome is None else outcome.layer_forwards
            stop = replace(stop, repaired=(fitted, outcome))
            with self._progress.aside(GATES):
                for look in self._looks:
                    found |= look(fitted)
        missed = [aim for aim in self._target if not aim.met(found[aim.name])]
        gate = Gate(len(stack.removed), found, [str(aim) for aim in missed])
        self._gates.append(gate)
        if any(not aim.goal for aim in missed):
            return True
        self._held = stop, gate
        return not missed and any(aim.goal for aim in self._target)

    def reached(self, dense: Mapping[str, float]) -> tuple[Stop, TargetRecord]:
        """The last model that holds. Raises :class:`TargetError` where there is none, or where it falls short."""
        asked, layers = listed([str(aim) for aim in self._target]), self._pruner.stack.num_layers
        if self._held is None:
            raise TargetError(f"--target {asked}: no layer can go: with one of {layers} gone {self._told(-1)}")
        stop, gate = self._held
        if gate.missed:
            beyond = (
                "no more may go" if gate is self._gates[-1] else f"with {self._gates[-1].layers} gone {self._told(-1)}"
            )
            raise TargetError(
                f"--target {asked}: it comes no further than {gate.layers} of {layers} layers gone, with "
                f"{self._told(self._gates.index(gate))}; {beyond}. Nothing was written: --layers {gate.layers} gives "
                "that model"
            )
        spent = self._pruner.layer_forwards + self._fitted
        mine = 0 if stop.repaired is None or stop.repaired[1] is None else stop.repaired[1].layer_forwards
        return replace(stop, layer_forwards=spent - mine, at=time.perf_counter()), TargetRecord(
            [str(aim) for aim in self._target], self._gates, dict(dense), self._latency
        )

    def _told(self, number: int) -> str:
        """What a gate missed, and by what: limits, or where none is broken, goals."""
        gate = self._gates[number]
        missed = [aim for aim in self._target if str(aim) in gate.missed]
        return " and ".join(
            f"{aim.name} is {aim.shown(gate.seen[aim.name])} (wanted {aim.text})"
            for aim in [aim for aim in missed if not aim.goal] or missed
        )


class Looks:
    """A text on which models are measured one after the other. Where states may be kept in between (``keeps``), the
    dense one is run once, and of a model what lies above the first layer that differs from the last."""

    def __init__(self, windows: Windows, dense: Standing, progress: Progress, keeps: bool) -> None:
        self._windows, self._dense, self._progress = windows, dense, progress
        self._room = keeps
        if self._room:
            placement = with_room(dense.placement)
            self._run = Run(dense.decoder, windows, placement, stack=dense.stack, measured=False, progress=progress)
            self._kept = LastStates(self._run, dense.placement)
            self._first = self._look(self._kept.hold, False)

    def _look(self, look: Any, compared: bool) -> TextQuality:
        sums = [seen(self._run, shard, look) for shard in self._run.shards]
        return quality_of(self._windows, torch.cat(sums), compared)

    def __call__(self, stack: LayerStack) -> dict[str, float]:
        """Its perplexity, a ratio to the dense model's, and its agreement with it, if memory has room for that."""
        try:
            if self._room:
                self._run.turn_to(stack)
                dense, pruned = self._first, self._look(self._kept.compare, True)
            else:
                dense, pruned = on_text(self._windows, self._dense, [replace(self._dense, stack=stack)], self._progress)
        except NumericalError:  # of the pruned model: the dense one has been looked at before
            return {"perplexity": math.inf, "agreement": 0.0, "kl": math.inf}
        found = {"perplexity": pruned.perplexity.value / dense.perplexity.value}
        if pruned.agreement is None:
            return found
        return {**found, "agreement": pruned.agreement.top1.value, "kl": pruned.agreement.kl.value}


def shared(placement: Placement, ratio: float) -> tuple[Placement | None, Placement | None]:
    """The same for two that keep states at once, beside a repair: half each of what that leaves, the second for windows
    of ``ratio`` as many tokens. None for both where that is too little for one."""
    places = [tier for tier in Tier for _ in range(placement.capacity.get(tier, 0))][BOUNDARIES:]
    each = {tier: places.count(tier) // 2 for tier in Tier}
    scaled = {tier: int(count / max(1.0, ratio)) for tier, count in each.items()}
    if min(sum(each.values()), sum(scaled.values())) < 2:
        return None, None
    return replace(placement, capacity=each), replace(placement, capacity=scaled)


def measure(source: ModelSource, name: str, alive: Collection[int]) -> int:
    """How large a model of some layers is: ``layers``; ``params``, what several places share once; or ``size``, bytes
    of weights as they are stored, or, where they are not at hand, as they are computed with."""
    if name == "layers":
        return len(alive)
    decoder = source.described
    gone = set(range(decoder.num_layers)) - set(alive)
    if name == "size":
        try:
            tensors = source.tensors()
        except NotImplementedError:
            return measure(source, "params", alive) * source.dtype.itemsize
        stay = {layer: layer for layer in alive}
        return sum(tensors.nbytes(each) for each in tensors.names() if renamed(each, source.layers, stay) is not None)
    return int(
        sum(p.numel() for p in decoder.model.parameters())
        - sum(p.numel() for layer in gone for p in decoder.layers[layer].parameters())
    )


def most_rounds(
    target: Sequence[Aim], source: ModelSource, candidates: Sequence[int], most: int, latency: Latency | None
) -> int:
    """How many layers go at most, of so many that may, until all goals are reached. Raises :class:`OptionError` for a
    goal that the model meets as it is, or cannot reach."""
    every, needed = set(range(source.num_layers)), 0
    for aim in [aim for aim in target if aim.goal]:
        sizes: list[Callable[[Collection[int]], float]] = [partial(measure, source, aim.name)]
        told = True
        if aim.name == "latency" and latency is not None:
            sizes = [partial(share, seconds) for seconds in (latency.prefill, latency.decode)]
            told = not latency.assumed
        for size in sizes:
            dense = size(every)
            if aim.met(dense):
                raise OptionError(f"--target {aim}: the model has {aim.shown(dense)} as it is; give less")
            each = sorted(dense - size(every - {layer}) for layer in candidates)
            least = dense - sum(each[len(each) - most :])
            if told and not aim.met(least):
                raise OptionError(
                    f"--target {aim}: with all {most} layers gone that may go {aim.shown(least)} are left; give more"
                )
            needed = max(needed, next((n for n in range(1, most) if aim.met(dense - sum(each[:n]))), most))
    return needed or most
