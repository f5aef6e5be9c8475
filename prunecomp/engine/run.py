"""A pruned model over a set of windows: what is known of it, what is kept of it, and how it is brought up to date."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from prunecomp.data.windows import Batch, Windows
from prunecomp.engine.gram import gram_sums
from prunecomp.engine.losses import batch_losses
from prunecomp.engine.overflow import overflow
from prunecomp.engine.parallel import world_size
from prunecomp.engine.placement import Placement, largest_share, memory_advice, workers_of
from prunecomp.engine.progress import Progress, silent
from prunecomp.engine.retention import choose_boundaries, removal_odds, reversal
from prunecomp.engine.sinks import LayerSink
from prunecomp.engine.states import StateStore, Tier
from prunecomp.engine.statistics import Statistics
from prunecomp.engine.sweep import Finish, Sweeper, Tally
from prunecomp.errors import OptionError
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack, Overlay

WORK_UNIT = "layers x windows"

Look = Callable[[Batch, torch.Tensor], torch.Tensor]
"""``look(batch, stream)``: numbers of each of a micro-batch's B windows, [B, columns] float64 on the CPU, from what
leaves the last layer, [B, S, d] or packed."""


class CalibrationShard:
    """Some of a run's windows, which are brought up to date together; with several processes, this one's share."""

    def __init__(
        self, decoder: Decoder, windows: Windows, first: int, placement: Placement, capacity: Mapping[Tier, int]
    ) -> None:
        self.all_windows = windows
        self.first = first
        """Where they stand among the windows of the run."""
        self.workers = workers_of(windows.count, windows.seqlen, decoder.device)
        self.windows = windows.take(self.workers.rows)
        self.sweeper = Sweeper(decoder, self.windows, placement)
        self.states = StateStore(
            self.sweeper.state_shape, decoder.device, capacity, carry=placement.carry, disk=placement.disk_folder
        )
        self.table: dict[int, torch.Tensor] = {}
        """What is known of each layer, if anything is measured: see :class:`LayerSink`. No value is ever written to."""
        self.gram: torch.Tensor | None = None
        """[N, 3 or 4, M, M] float64, of all processes: see :func:`gram_sums`."""
        self.stale_from: int | None = 0
        """The lowest position whose statistics are out of date."""

    def fork(self) -> CalibrationShard:
        """The same at this moment, to go its own way."""
        twin = copy.copy(self)
        twin.sweeper = copy.copy(self.sweeper)
        twin.sweeper.tally = Tally()
        twin.states = self.states.fork()
        twin.table = dict(self.table)
        return twin


@dataclass(frozen=True)
class _ShardSnapshot:
    table: Mapping[int, torch.Tensor]
    gram: torch.Tensor | None
    stale_from: int | None


@dataclass(frozen=True)
class Snapshot:
    """What :meth:`Run.restore` needs to go back to a moment: everything but states, a few numbers a sequence and layer
    (and with ``spans`` a few a channel)."""

    stack: LayerStack
    scores: Mapping[int, float]
    shards: Sequence[_ShardSnapshot]


class Run:
    """A model under work: its surviving layers and seams, and over some windows the states and statistics that hold.

    The weights of ``decoder`` are read and never written. :meth:`update` runs only what lies above the lowest change
    since the last time, from the nearest state kept below it; without ``cache`` it runs everything, to the same bits.

    Parameters
    ----------
    placement : what is kept where.
    candidates : the layers that may go; states are kept with an eye to them.
    shards : into how many shards the windows are cut, each brought up to date on its own.
    measured : whether statistics of every layer are taken; without, the run is good for losses alone.
    spans : also take what reaches across several layers: the Gram matrix of all states, magnitudes by channel. All
        states of a shard are then kept at once; where memory does not hold those of all windows there are more shards,
        whose states are dropped in turn.
    along_tokens : with ``spans``, also the cosines along tokens that the official code takes.
    backward : gradients will be asked for (:mod:`prunecomp.engine.backward`), and states are kept for them.
    """

    def __init__(
        self,
        decoder: Decoder,
        windows: Windows,
        placement: Placement,
        *,
        stack: LayerStack | None = None,
        candidates: Sequence[int] | None = None,
        shards: int = 1,
        measured: bool = True,
        spans: bool = False,
        along_tokens: bool = False,
        backward: bool = False,
        cache: bool = True,
        backend: str | None = None,
        progress: Progress = silent,
    ) -> None:
        self.decoder = decoder
        self.windows = windows
        self.placement = placement
        self.stack = LayerStack.dense(decoder.num_layers) if stack is None else stack
        self.candidates = range(decoder.num_layers) if candidates is None else candidates
        self.scores: dict[int, float] = {}
        """The last scores, from which it is guessed what goes next."""
        self.progress = progress
        self.backend = backend
        self.caches = cache
        """Whether anything is kept from one time to the next."""
        self._measured, self._spans, self._along_tokens, self._backward = measured, spans, along_tokens, backward
        turns, capacity = (
            take_turns(len(self.stack.alive) - 1, windows, placement, decoder.device)
            if spans
            else (1, placement.capacity)
        )
        self._in_turn = turns > 1
        if backward:
            check_capacity(placement.kept_boundaries, placement, decoder.device)
        shards = max(shards, turns)
        bounds = [windows.count * i // shards for i in range(shards + 1)]
        self.shards = [
            CalibrationShard(decoder, windows.take(slice(low, high)), low, placement, capacity)
            for low, high in pairwise(bounds)
        ]

    def fork(self) -> Run:
        """The same run at this moment, to go its own way; states and statistics are shared, and counted forwards begin
        at zero."""
        twin = copy.copy(self)
        twin.shards = [shard.fork() for shard in self.shards]
        twin.scores = dict(self.scores)
        return twin

    def restrict(self, *, spans: bool, backward: bool) -> None:
        """Have less be asked of it from here on: no Gram matrices, or no gradients. What is known stays known."""
        self._spans = self._spans and (spans or self._in_turn)
        self._backward = self._backward and backward

    def release_carry(self) -> None:
        """Another run goes first: where weights are streamed, give back what holds the boundary between two groups."""
        if self.placement.group_size is not None:
            for shard in self.shards:
                shard.states.release_carry()

    def release(self) -> None:
        """Let go of all states; what is wanted of them is run again."""
        for shard in self.shards:
            shard.states.clear()

    def trial(self) -> Run:
        """A fork to try something on: what it runs counts as run by this one, and it keeps no states of its own."""
        twin = self.fork()
        for mine, its in zip(self.shards, twin.shards, strict=True):
            its.sweeper.tally = mine.sweeper.tally
        return twin

    @property
    def layer_forwards(self) -> float:
        """Passes of all windows through one layer, so far; a whole number but where shards were left out."""
        passes = sum(shard.sweeper.tally.window_forwards for shard in self.shards)
        return whole(passes / sum(shard.windows.count for shard in self.shards))

    @property
    def current(self) -> list[CalibrationShard]:
        """The shards that are up to date."""
        return [shard for shard in self.shards if shard.stale_from is None]

    @property
    def statistics(self) -> Statistics:
        """Of the shards that are up to date."""
        shards = self.current
        return Statistics(
            self.stack,
            [shard.table for shard in shards],
            [shard.all_windows.each_length for shard in shards],
            [shard.gram for shard in shards],
        )

    def update(self, shard: CalibrationShard, *, keep: bool = True) -> None:
        """Bring a shard's statistics up to date. ``keep`` off promises that no state of it will be wanted again."""
        if not self._spans:
            if shard.stale_from is not None:
                self._sweep(shard, shard.stale_from, keep, None, scoring=True)
        elif shard.gram is None:
            top = len(self.stack.alive) - 1
            mine: list[torch.Tensor] = []

            def finish(batch: Batch, stream: torch.Tensor) -> None:
                mine.append(
                    gram_sums(
                        self.decoder, self.stack, shard.states, batch, stream,
                        with_along_tokens=self._along_tokens, backend=self.backend,
                    )
                )  # fmt: skip

            position = top if shard.stale_from is None else min(shard.stale_from, top)
            self._sweep(shard, position, keep, finish, scoring=True)
            shard.gram = shard.workers.gather(torch.cat(mine))
            if self._in_turn:
                shard.states.clear()
        shard.stale_from = None

    def loss(self, *, keep: bool = True, over: Sequence[int] | None = None) -> float:
        """Next-token cross entropy of the model in nats, over all predicted tokens of all windows, or of the shards
        numbered in ``over``.

        Where windows have one length, the mean over tokens is the mean over windows of the official code. Raises
        :class:`NumericalError` naming layer and sequence where it is not finite.
        """
        shards = self.shards if over is None else [self.shards[number] for number in over]
        total = sum(float(self.losses(shard, keep=keep).sum()) for shard in shards)
        return total / sum(shard.all_windows.num_tokens - shard.all_windows.count for shard in shards)

    def losses(self, shard: CalibrationShard, *, keep: bool = True) -> torch.Tensor:
        """The sum over each window of a shard, of all processes: [N] float64."""
        decoder = self.decoder.topped(self.stack)
        return self.outcomes(shard, lambda b, y: batch_losses(decoder, b, y).unsqueeze(1), keep=keep)[:, 0]

    def outcomes(self, shard: CalibrationShard, see: Look, columns: int = 1, *, keep: bool = True) -> torch.Tensor:
        """What ``see`` says of each window of a shard, of all processes: [N, columns] float64, the loss's sum first."""
        mine = torch.zeros(shard.windows.count, columns, dtype=torch.float64)

        def finish(batch: Batch, stream: torch.Tensor) -> None:
            mine[batch.rows] = see(batch, stream)

        top = len(self.stack.alive) - 1
        self._sweep(shard, top if shard.stale_from is None else min(shard.stale_from, top), keep, finish, scoring=False)
        shard.stale_from = None
        outcomes = shard.workers.gather(mine)
        bad = (~outcomes[:, 0].isfinite()).nonzero()
        if len(bad):  # every process sees it, and looks for itself
            raise overflow(self.decoder, self.stack, shard.all_windows, shard.first, int(bad[0]), self.placement)
        return outcomes

    def _sweep(
        self, shard: CalibrationShard, position: int, keep: bool, finish: Finish | None, *, scoring: bool
    ) -> None:
        alive = self.stack.alive
        start = self.nearest_state(shard, position) if self.caches else 0
        if scoring and self._spans and start > 0:  # all states below are read too, so all must be there
            start = next((p - 1 for p in range(1, start) if alive[p] not in shard.states.kept), start)
        if start >= len(alive):
            return  # the cut was at the top: nothing above it is left to run
        if scoring and (self._spans or self._backward):
            self._hold_states(shard, start)
        else:
            self._choose_states(shard, start, keep and self.caches)
        measured = LayerSink(shard.all_windows, shard.workers, self.backend, first=shard.first, channels=self._spans)
        with self.decoder.evaluating():
            steps = (len(alive) - start) * shard.windows.count
            with self.progress("scoring" if scoring else "loss", steps, WORK_UNIT) as advance:
                sinks = [measured] if self._measured else []
                shard.sweeper.sweep(self.stack, start, shard.states, sinks, advance, finish)
        shard.table |= measured.table

    def nearest_state(self, shard: CalibrationShard, position: int) -> int:
        """The highest position up to ``position`` whose state is kept; 0, the embedding, always is."""
        alive, kept = self.stack.alive, shard.states.kept
        if position == len(alive):
            return position
        return max((p for p in range(1, position + 1) if alive[p] in kept), default=0)

    def _choose_states(self, shard: CalibrationShard, start: int, keep: bool) -> None:
        """Have the store keep what makes the next round cheapest, among what it has and what this sweep will pass."""
        alive, kept = self.stack.alive, shard.states.kept
        shared = shard.states.shared if keep else frozenset()  # they cost nothing as long as somebody else holds them
        budget = shard.states.budget - len(shared)
        odds = removal_odds(self.scores, [layer for layer in self.candidates if layer in alive])
        passed = [p for p in range(1, len(alive)) if p > start or alive[p] in kept - shared]
        by_position = [odds.get(layer, 0.0) for layer in alive]
        chosen = choose_boundaries(by_position, passed, budget) if keep else []
        if start > 0 and start not in chosen and alive[start] not in shared:  # this sweep itself sets out from there
            chosen = [start, *choose_boundaries(by_position, passed, budget - 1 if keep else 0)]
        shard.states.retain([*shared, *(alive[p] for p in sorted(chosen, key=lambda p: -by_position[p]))])

    def _hold_states(self, shard: CalibrationShard, start: int) -> None:
        """Have the store keep what is read when the sweep is over: every state, or what gradients set out from."""
        alive, kept = self.stack.alive, shard.states.kept
        if self._spans:
            return shard.states.retain(alive[1:])
        check_capacity(shard.states.budget, self.placement, self.decoder.device)
        lowest = min((p for p, layer in enumerate(alive) if layer in self.candidates), default=0)
        wanted = reversal(0, lowest, len(alive) - 1, shard.states.budget - 1)  # one place is the gradient's
        chosen = [p for p in wanted if p > start or alive[p] in kept]
        if start > 0 and start not in chosen:  # this sweep itself sets out from there
            chosen.append(start)
        shard.states.retain([alive[p] for p in chosen])

    def remove(self, block: Sequence[int], scale: float = 1.0) -> None:
        """Remove neighbouring survivors, one seam in their place; states below them stay as they are."""
        p = self.stack.position(block[0])
        self.stack = self.stack.remove_block(block, scale)
        successor = self.stack.alive[p] if p < len(self.stack.alive) else None
        for shard in self.shards:
            shard.states.drop_all(block[1:])
            shard.states.move(block[0], successor)
            self._changed(shard, p)

    def snapshot(self) -> Snapshot:
        """This moment, to come back to."""
        shards = [_ShardSnapshot(dict(shard.table), shard.gram, shard.stale_from) for shard in self.shards]
        return Snapshot(self.stack, dict(self.scores), shards)

    def restore(self, snapshot: Snapshot, *, states: bool = False) -> None:
        """Go back to a moment of this run: stack, scores and statistics are bit for bit what they were.

        A state is still right where all below it is the same in both stacks, and is kept; the others go. ``states`` has
        those that a pass keeps run again by the next :meth:`update`, for whoever reads them beside the statistics.
        """
        before, self.stack = self.stack, snapshot.stack
        same = before.common_prefix(self.stack)
        entering = [stack.alive[same] if same < len(stack.alive) else None for stack in (before, self.stack)]
        for shard, then in zip(self.shards, snapshot.shards, strict=True):
            shard.states.drop_all(before.alive[same + 1 :])
            if entering[0] is not None and entering[0] != entering[1]:  # what enters there is the same, under its name
                shard.states.move(entering[0], entering[1])
            shard.table, shard.gram, shard.stale_from = dict(then.table), then.gram, then.stale_from
            if states:
                shard.gram = None
                shard.stale_from = same if then.stale_from is None else min(same, then.stale_from)
        self.scores = dict(snapshot.scores)

    def turn_to(self, stack: LayerStack) -> None:
        """Go on with another stack over the same weights: what enters the lowest layer that differs stays known."""
        new = _ShardSnapshot({}, None, self.stack.common_prefix(stack))
        self.restore(Snapshot(stack, self.scores, [new] * len(self.shards)))

    def replace(self, layer: int, overlay: Overlay) -> None:
        """Have other weights stand in for some of a survivor's own; what it and the layers above it gave is void."""
        p = self.stack.position(layer)
        self.stack = self.stack.with_overlay(layer, overlay)
        for shard in self.shards:
            self._changed(shard, p)

    def _changed(self, shard: CalibrationShard, position: int) -> None:
        shard.states.drop_all(self.stack.alive[position + 1 :])
        shard.stale_from = position if shard.stale_from is None else min(shard.stale_from, position)
        shard.gram = None


def whole(forwards: float) -> float:
    """An integer where it is one."""
    return int(forwards) if float(forwards).is_integer() else forwards


CPU = torch.device("cpu")


def check_capacity(boundaries: int, placement: Placement, device: torch.device) -> None:
    """Raise :class:`OptionError` where a gradient and the state it is handed down to have no room together."""
    if boundaries < 2:
        raise OptionError(
            "gradients need room for two boundaries of all windows at once, and memory is left for "
            f"{boundaries}: {memory_advice(placement.disk_folder, device)}"
        )


def take_turns(
    boundaries: int, windows: Windows, placement: Placement, device: torch.device = CPU
) -> tuple[int, dict[Tier, int]]:
    """Into how many shards windows must be cut for all ``boundaries`` of a shard to be kept at once, in what room the
    placement leaves for some boundaries of all windows; and how many of a shard each tier holds.

    Raises :class:`OptionError` where not even the least shard fits.
    """
    processes = world_size()
    whole = largest_share(windows.count, windows.seqlen, processes, device)
    for turns in range(1, windows.count // processes + 1):
        share = largest_share(-(-windows.count // turns), windows.seqlen, processes, device)
        capacity = {tier: count * whole // share for tier, count in placement.capacity.items()}
        if sum(capacity.values()) >= boundaries:
            return turns, capacity
    raise OptionError(
        f"blocks of layers are scored from all {boundaries} states of a window at once, and memory is left for "
        f"{placement.kept_boundaries} of the whole set: {memory_advice(placement.disk_folder, device)}"
    )
