"""The loss of every candidate's absence, in one sweep: the weights of a layer are visited once, for all candidates.

The main stream runs once. Each candidate branches off where its layer is left out, and from there a stream of its own
goes through the layers above: half of the layer-forwards of as many models run whole. Every stream is called by itself,
in the shape of a micro-batch, so that a loss has the bits that the pruned model's own has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from prunecomp.data.windows import Batch
from prunecomp.engine.losses import batch_losses
from prunecomp.engine.progress import Advance
from prunecomp.engine.retention import removal_odds
from prunecomp.engine.run import WORK_UNIT, CalibrationShard, Run
from prunecomp.engine.sinks import remedy
from prunecomp.engine.states import CARRY, StateShape, StateStore, Tier, set_apart
from prunecomp.errors import NumericalError
from prunecomp.model.decoder import apply_seam
from prunecomp.model.stack import LayerStack

MAIN = CARRY - 1
"""The main stream's name among the candidates', which are called after the layer that they leave out."""

TOKENS_A_VISIT = 2**16
"""Tokens that make it worth while to fetch a streamed layer's weights. Counted, not measured: a stream that is carried
between two tiers moves 2 d values a token and layer, there and back, and a layer has some 12 d^2 weights. So past 6 d
tokens, 2^16 or less for any d in use, a larger block costs more than the weights that it saves."""


def leave_one_out(
    run: Run, shard: CalibrationShard, without: Mapping[int, LayerStack], streams: KeptStreams | None
) -> torch.Tensor:
    """Sums over each window's tokens of the next-token loss of every candidate: [N, candidates] float64.

    ``without`` has for each candidate, from below, the stack that its removal leaves. Main states are read where
    ``run`` keeps them, and run from the nearest one below where not. ``streams`` are those of the last round, and take
    those of this one.

    Where all weights are in place, one micro-batch after the other goes through all layers. Where they are streamed,
    layers are walked once for each block of micro-batches: as many as have all their streams fit in the room for
    states that neither the run nor the kept streams use, until a layer has :data:`TOKENS_A_VISIT` tokens to work on.
    Streams of several micro-batches live in that room, whatever its tier; those of one stay on the device.
    """
    sweep = _Sweep(run, shard, without, streams)
    losses = torch.zeros(shard.windows.count, len(without), dtype=torch.float64)
    with run.decoder.evaluating(), run.progress("candidates", sweep.work, WORK_UNIT) as advance:
        for block in sweep.blocks():
            for batch, layer, loss in sweep.run(block, advance):
                losses[batch.rows, sweep.column[layer]] = loss
    sweep.finish()
    losses = shard.workers.gather(losses)
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        sequence, column = bad[0].tolist()
        raise NumericalError(
            f"without layer {list(without)[column]}, sequence {shard.first + sequence}: the loss is not finite. "
            f"{remedy(run.decoder.dtype, 'weights of the layers above it')}"
        )
    return losses


@dataclass
class KeptStreams:
    """Candidate streams at one boundary, kept from round to round: a cut above it leaves them as they are."""

    store: StateStore
    below: dict[int, LayerStack] = field(default_factory=dict)
    """For each candidate kept, the part of its pruned model that its stream has run through."""

    @classmethod
    def beside(cls, shard: CalibrationShard, run: Run) -> KeptStreams:
        """In the room that the placement has beyond one boundary for each layer."""
        return cls(
            StateStore(shard.states.shape, run.decoder.device, spare_capacity(run), disk=run.placement.disk_folder)
        )

    def valid(self, layer: int, stack: LayerStack) -> int | None:
        """At which position of ``stack`` the stream kept for a candidate enters; None if it no longer holds."""
        held = self.below.get(layer)
        if held is None or layer not in self.store.kept:
            return None
        return len(held.alive) if held.common_prefix(stack) == len(held.alive) else None

    def choose(self, run: Run, candidates: Sequence[int], least: int) -> int | None:
        """The position, ``least`` or higher, at which to keep the streams of all candidates below it, so that the
        next round is expected to save most; None where there is nothing to save.

        A cut at or above position k saves what lies between each candidate and k.
        """
        alive = run.stack.alive
        odds = removal_odds(run.scores, candidates)
        chances = [odds.get(layer, 0.0) for layer in alive]
        savings: dict[int, float] = {}
        for k in range(max(least, 2), len(alive)):
            below = [p for p in range(k) if alive[p] in candidates]
            if len(below) <= self.store.budget:
                savings[k] = sum(chances[k:]) * sum(k - 1 - p for p in below)
        best = max(savings, key=lambda k: savings[k], default=None)
        return None if best is None or savings[best] <= 0 else best


def spare_capacity(run: Run) -> dict[Tier, int]:
    """How many boundaries there is room for beside one for each layer, which are the run's own."""
    return set_apart(run.placement.capacity, run.decoder.num_layers - 1)[1]


class _Sweep:
    """One round's streams. Positions are those of the whole model: a candidate's own layer counts, and is passed by."""

    def __init__(
        self, run: Run, shard: CalibrationShard, without: Mapping[int, LayerStack], kept: KeptStreams | None
    ) -> None:
        self.of, self.shard, self.without, self.kept = run, shard, without, kept
        self.alive = run.stack.alive
        self.column = {layer: number for number, layer in enumerate(without)}
        self.position = {layer: run.stack.position(layer) for layer in without}
        self.seams = {name: dict(zip(stack.alive, stack.seams, strict=True)) for name, stack in without.items()}
        self.seams[MAIN] = dict(zip(self.alive, run.stack.seams, strict=True))
        reached = {layer: None if kept is None else kept.valid(layer, stack) for layer, stack in without.items()}
        self.resumed = {layer: position + 1 for layer, position in reached.items() if position is not None}
        self.enters = {**self.position, **self.resumed}
        """Where each candidate's stream begins: where it leaves the main one, or where it was kept."""
        branches = {p for layer, p in self.position.items() if layer not in self.resumed}
        # What leaves these positions' layers is wanted of the main stream, and not kept.
        self.main_runs = {q for p in branches for q in range(run.nearest_state(shard, p), p)}
        self.main_wanted = branches | self.main_runs
        self.start = min([*self.main_wanted, *self.resumed.values()], default=len(self.alive))
        self.keep_at, self.to_keep = self._choose()
        self.room = (
            spare_capacity(run)
            if kept is None
            else set_apart(kept.store.free(), len({*self.to_keep} - {*self.resumed}))[1]
        )
        """Boundaries of the whole shard that each tier still has a place for: for blocks."""

    def _choose(self) -> tuple[int | None, list[int]]:
        if self.kept is None:
            return None, []
        self.kept.store.retain(list(self.resumed))
        least = max(self.resumed.values(), default=0)
        chosen = self.kept.choose(self.of, list(self.without), least)
        if chosen is None or chosen == least:
            return None, []
        return chosen, [layer for layer, p in self.position.items() if p < chosen]

    @property
    def passes(self) -> int:
        """Layers that one window is sent through, all streams together."""
        above = sum(len(self.alive) - max(self.enters[layer], p + 1) for layer, p in self.position.items())
        return above + len(self.main_runs)

    @property
    def work(self) -> int:
        """Layers x windows that will be run."""
        return self.passes * self.shard.windows.count

    def blocks(self) -> Iterator[list[Batch]]:
        """Micro-batches that go through the layers together."""
        streamed = self.of.placement.group_size is not None
        visits = len(self.alive) - self.start
        block: list[Batch] = []
        tokens = 0
        for batch in self.shard.sweeper.batches:
            more = tokens + batch.tokens.numel()
            enough = tokens * self.passes >= TOKENS_A_VISIT * visits
            if block and (not streamed or enough or sum(self._capacity(more).values()) <= len(self.without)):
                yield block
                block, more = [], batch.tokens.numel()
            block.append(batch)
            tokens = more
        yield block

    def _capacity(self, tokens: int) -> dict[Tier, int]:
        """How many streams of so many tokens each tier has room for."""
        return {tier: count * self.shard.states.shape.num_tokens // tokens for tier, count in self.room.items()}

    def _shelf(self, block: list[Batch]) -> _Shelf:
        if len(block) == 1:
            return _Shelf(block, None)
        decoder = self.of.decoder
        tokens = sum(batch.tokens.numel() for batch in block)
        shape = StateShape(tokens, decoder.hidden_size, decoder.dtype)
        store = StateStore(shape, decoder.device, self._capacity(tokens), disk=self.of.placement.disk_folder)
        store.retain([MAIN, *self.without])
        return _Shelf(block, store)

    def run(self, block: list[Batch], advance: Advance) -> Iterator[tuple[Batch, int, torch.Tensor]]:
        """Run a block to the top; yields each candidate's losses, [B] float64."""
        decoder = self.of.decoder
        shelf = self._shelf(block)
        p = self.start
        for group in decoder.weights.walk(self.of.placement.groups(self.alive[self.start :])):
            for batch in block:
                arguments = decoder.arguments(batch)
                for number, layer in enumerate(group, start=p):
                    passing = self._passing(number, batch, shelf)
                    for name in passing:
                        x = apply_seam(shelf.get(name, batch), self.seams[name][layer])
                        shelf.put(name, batch, decoder.call(layer, x, arguments, self.of.stack.overlays.get(layer)))
                    self.shard.sweeper.count(batch.count * len(passing))
                    advance(batch.count * len(passing))
            p += len(group)
        for batch in block:
            self._passing(len(self.alive), batch, shelf)
            for layer in self.without:
                yield batch, layer, batch_losses(decoder, batch, shelf.get(layer, batch))
                shelf.drop(layer)

    def finish(self) -> None:
        """All blocks have been run: what was kept of them is complete."""
        if self.kept is not None and self.keep_at is not None:
            self.kept.below = {name: self.without[name].below(self.keep_at - 1) for name in self.to_keep}

    def _passing(self, p: int, batch: Batch, shelf: _Shelf) -> list[int]:
        """Put on the shelf what enters position ``p`` from elsewhere than the layer below, and say which streams go
        through its layer."""
        if p in self.main_wanted and p == 0:
            shelf.put(MAIN, batch, self.of.decoder.enter(batch)[0])
        elif p in self.main_wanted and self.alive[p] in self.shard.states.kept:
            shelf.put(MAIN, batch, self.shard.states.get(self.alive[p], batch))
        for name, at in self.enters.items():
            if at == p and name in self.resumed:
                assert self.kept is not None
                shelf.put(name, batch, self.kept.store.get(name, batch))
            elif at == p:
                shelf.put(name, batch, shelf.get(MAIN, batch))
        if p == self.keep_at and self.kept is not None:
            if batch.first_token == 0:
                self.kept.store.retain(self.to_keep)
                self.kept.below = {}  # of one round in part, in part of another, if this one does not come to its end
            for name in self.to_keep:
                self.kept.store.put(name, batch, shelf.get(name, batch))
        passing = [name for name, q in self.position.items() if q < p and self.enters[name] <= p]
        if p in self.main_runs:
            return [*passing, MAIN]
        shelf.drop(MAIN)
        return passing


class _Shelf:
    """Streams of a block between two layers, before the seam that follows: of one micro-batch as their layers left
    them, of several in a store."""

    def __init__(self, block: list[Batch], store: StateStore | None) -> None:
        self._first = block[0].first_token
        self._store = store
        self._at_hand: dict[int, torch.Tensor] = {}

    def put(self, name: int, batch: Batch, stream: torch.Tensor) -> None:
        if self._store is None:
            self._at_hand[name] = stream
        else:
            self._store.put(name, self._within(batch), stream)

    def get(self, name: int, batch: Batch) -> torch.Tensor:
        return self._at_hand[name] if self._store is None else self._store.get(name, self._within(batch))

    def drop(self, name: int) -> None:
        """Of a single micro-batch; several have their places until the block is through."""
        self._at_hand.pop(name, None)

    def _within(self, batch: Batch) -> Batch:
        return replace(batch, first_token=batch.first_token - self._first)
