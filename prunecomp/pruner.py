"""The loop: score, remove, compensate, repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from prunecomp.compensation import COMPENSATIONS, Seam
from prunecomp.data.windows import Windows
from prunecomp.engine.parallel import Workers, world_size
from prunecomp.engine.placement import Placement, available_memory, micro_batch, model_shape, place
from prunecomp.engine.progress import Progress, silent
from prunecomp.engine.retention import choose_boundaries, removal_odds
from prunecomp.engine.sinks import PairStatistics
from prunecomp.engine.states import StateStore
from prunecomp.engine.sweep import Sweeper
from prunecomp.errors import OptionError
from prunecomp.metrics import METRICS, Evidence
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.result import RoundRecord

WORK_UNIT = "layers x windows"


class Pruner:
    """A model being pruned: what survives, the statistics that are valid, and the states below each cut.

    The weights of ``decoder`` are read and never written. ``score`` brings the statistics up to date by running only
    what lies above the lowest change since the last call, from the nearest state kept below it; without ``cache`` it
    runs everything, to the same bits.

    ``placement`` says what is kept where; by default all that fits in the memory that is free. ``candidates`` are the
    layers that may go: states are kept with an eye to them.
    """

    def __init__(
        self,
        decoder: Decoder,
        windows: Windows,
        *,
        metric: str = "bi",
        compensation: str = "scale",
        cache: bool = True,
        placement: Placement | None = None,
        candidates: Sequence[int] | None = None,
        seed: int = 0,
        given: Sequence[int] = (),
        backend: str | None = None,
        progress: Progress = silent,
    ) -> None:
        self.decoder = decoder
        self.workers = Workers.current(windows.count, micro_batch(windows.count, windows.seqlen))
        self.windows = windows.take(self.workers.rows)
        self.stack = LayerStack.dense(decoder.num_layers)
        self.metric = METRICS[known("--metric", metric, METRICS)]()
        self._compensate = COMPENSATIONS[known("--compensation", compensation, COMPENSATIONS)]
        self._seed, self._given = seed, tuple(given)
        self._cache = cache
        self._progress = progress
        self._candidates = range(decoder.num_layers) if candidates is None else candidates
        if placement is None:
            memory = available_memory(decoder.device)
            shape = model_shape(decoder.model, decoder.family, decoder.dtype)
            placement = place(
                shape, windows.count, windows.seqlen, memory, decoder.device, resident=True, processes=world_size()
            )
        self.placement = placement
        self._sweeper = Sweeper(decoder, self.windows, placement)
        self._statistics = PairStatistics(windows, self.workers, backend)
        self._states = StateStore(
            self._sweeper.state_shape,
            decoder.device,
            placement.capacity,
            carry=placement.carry,
            disk=placement.disk_folder,
        )
        self._scores: dict[int, float] = {}
        self._stale_from: int | None = 0

    @property
    def layer_forwards(self) -> int:
        """Passes of the calibration set through one layer, so far."""
        return self._sweeper.layer_forwards

    def score(self, *, keep: bool = True) -> dict[int, float]:
        """The metric of every surviving layer, by original index. ``keep`` off promises that no score will follow."""
        if self._stale_from is not None:
            start = self._nearest_state(self._stale_from) if self._cache else 0
            above = len(self.stack.alive) - start
            if above > 0:
                self._choose_states(start, keep and self._cache)
                with self.decoder.evaluating():
                    with self._progress("scoring", above * self.windows.count, WORK_UNIT) as advance:
                        self._sweeper.sweep(self.stack, start, self._states, [self._statistics], advance)
            self._stale_from = None
        self._scores = self.metric.score(Evidence(self.stack, self._statistics, self.decoder, self._seed, self._given))
        return self._scores

    def _nearest_state(self, position: int) -> int:
        """The highest position up to ``position`` whose state is kept; 0, the embedding, always is."""
        alive, kept = self.stack.alive, self._states.kept
        if position == len(alive):
            return position  # the cut was at the top: nothing is left to run
        return max((p for p in range(1, position + 1) if alive[p] in kept), default=0)

    def _choose_states(self, start: int, keep: bool) -> None:
        """Have the store keep what makes the next round cheapest, among what it has and what this sweep will pass."""
        alive, kept = self.stack.alive, self._states.kept
        odds = removal_odds(self._scores, [layer for layer in self._candidates if layer in alive])
        passed = [p for p in range(1, len(alive)) if p > start or (p <= start and alive[p] in kept)]
        by_position = [odds.get(layer, 0.0) for layer in alive]
        chosen = choose_boundaries(by_position, passed, self._states.budget) if keep else []
        if start > 0 and start not in chosen:  # this sweep itself sets out from there
            chosen = [start, *choose_boundaries(by_position, passed, self._states.budget - 1 if keep else 0)]
        self._states.retain([alive[p] for p in sorted(chosen, key=lambda p: -by_position[p])])

    def remove(self, layer: int) -> Seam:
        """Remove a surviving layer and put its compensation, estimated from the last statistics, in its place."""
        seam = self._compensate(self._statistics, layer)
        self.restore(layer, seam.scale)
        return seam

    def restore(self, layer: int, scale: float) -> None:
        """Remove a surviving layer with a scale that is already known."""
        p = self.stack.position(layer)
        self.stack = self.stack.remove(layer, scale)
        self._states.move(layer, self.stack.alive[p] if p < len(self.stack.alive) else None)
        self._states.drop_all(self.stack.alive[p + 1 :])  # what lies above the cut is out of date
        self._stale_from = p if self._stale_from is None else min(self._stale_from, p)

    def scale_of(self, layer: int) -> float:
        """The scale that removing ``layer`` now would leave behind."""
        return self._compensate(self._statistics, layer).scale

    def zero_rows(self, layer: int) -> int:
        """Calibration tokens at which the layer's input or output is the zero vector."""
        return self._statistics.zero_rows(layer)


def known(option: str, name: str, table: Iterable[str]) -> str:
    if name not in table:
        raise OptionError(f"{option} {name}: choose {', '.join(sorted(table))}")
    return name


def choose_candidates(
    num_layers: int,
    layers: int,
    keep: Iterable[int] = (),
    candidates: Iterable[int] | None = None,
    barriers: Iterable[int] = (),
) -> list[int]:
    """The layers that may be removed: ``candidates``, or all but the metric's ``barriers``, less ``keep``.

    Raises :class:`OptionError` unless there are more of them than ``layers``.
    """
    keep = set(keep)
    chosen = set(range(num_layers)) - set(barriers) if candidates is None else set(candidates)
    for option, indices in (("--keep", keep), ("--candidates", chosen)):
        outside = sorted(i for i in indices if not 0 <= i < num_layers)
        if outside:
            raise OptionError(f"{option} {outside}: the model's layers are 0 to {num_layers - 1}")
    chosen -= keep
    if layers < 1:
        raise OptionError(f"--layers {layers}: give at least 1")
    if layers >= len(chosen):
        raise OptionError(
            f"--layers {layers}: only {len(chosen)} of the model's {num_layers} layers are candidates, "
            f"so at most {max(0, len(chosen) - 1)} can be removed"
        )
    return sorted(chosen)


def lowest(scores: dict[int, float], among: Iterable[int]) -> int:
    """The candidate with the lowest score; ties go to the lower layer."""
    return min(among, key=lambda layer: (scores[layer], layer))


def run_rounds(
    pruner: Pruner,
    layers: int,
    candidates: list[int],
    one_shot: bool,
    *,
    done: Sequence[RoundRecord] = (),
    on_round: Callable[[RoundRecord], None] | None = None,
) -> list[RoundRecord]:
    """Remove ``layers`` layers, re-scoring before each removal, or only before the first if ``one_shot``.

    ``done`` are the rounds of an earlier, interrupted run, taken as they are; ``on_round`` is told of each new one.
    """
    rounds = list(done)
    scores: dict[int, float] = {}
    if one_shot and len(done) < layers:
        scores = pruner.score(keep=False)  # of the dense model, also when going on: the scales come from there
    for earlier in done:
        pruner.restore(earlier.layer, earlier.scale)
    left = [layer for layer in candidates if layer not in {earlier.layer for earlier in done}]
    spent = 0
    for number in range(len(done), layers):
        started = time.perf_counter()
        if not one_shot:
            scores = pruner.score(keep=number < layers - 1)
        layer = lowest(scores, left)
        left.remove(layer)
        shown = {index: scores[index] for index in (layer, *pruner.stack.alive) if index in scores}
        zero_rows = pruner.zero_rows(layer)
        seam = pruner.remove(layer)
        rounds.append(
            RoundRecord(
                layer=layer,
                score=scores[layer],
                scale=seam.scale,
                scores=dict(sorted(shown.items())),
                layer_forwards=pruner.layer_forwards - spent,
                zero_rows=zero_rows,
                dead_channels=seam.dead_channels,
                seconds=time.perf_counter() - started,
            )
        )
        spent = pruner.layer_forwards
        if on_round is not None:
            on_round(rounds[-1])
    return rounds
