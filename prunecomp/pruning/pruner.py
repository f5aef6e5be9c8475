"""A model that is being pruned: what it is scored by, what is taken out, what takes its place."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunecomp.compensation import COMPENSATIONS, Removal, Seam, put_in_place
from prunecomp.data.windows import Windows, check_context, context_of, loose_windows
from prunecomp.engine.parallel import world_size
from prunecomp.engine.placement import Placement, available_memory, model_shape, place
from prunecomp.engine.progress import Progress, silent
from prunecomp.engine.run import Run, Snapshot
from prunecomp.engine.statistics import Statistics
from prunecomp.errors import OptionError
from prunecomp.io.values import layer_numbers, listed, one_of, whole
from prunecomp.metrics import METRICS, Candidates
from prunecomp.metrics.certainty import SequenceScores
from prunecomp.metrics.stopping import LOOKS, separated
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.names import FORMS
from prunecomp.pruning.result import Origin, PruneResult, RoundRecord


@dataclass(frozen=True)
class _Step:
    """A removal, and what it takes to take it back."""

    before: Snapshot
    blocks: Mapping[int, tuple[int, ...]]
    scored: LayerStack | None
    record: RoundRecord
    sequence_scores: SequenceScores | None


class Pruner:
    """A model being pruned: what survives, the statistics that are valid, and the states below each cut.

    The weights of ``decoder`` are read and never written. ``score`` brings the statistics up to date by running only
    what lies above the lowest change since the last call, from the nearest state kept below it; without ``cache`` it
    runs everything, to the same bits.

    For use step by step, from outside: :func:`prunecomp.pruner_for` makes one of a model object or a folder; then
    :meth:`score`, :meth:`remove`, :meth:`undo`, :meth:`loss`, in any order, and :meth:`result`.

    Parameters
    ----------
    placement : what is kept where; by default all that fits in the memory that is free.
    candidates : the layers that may go: states are kept with an eye to them.
    span : the most neighbours that go together; 1 unless the metric can score blocks.
    lookahead : for the metric ``ppl``: each candidate is judged with its own compensation in place.
    confidence : end a round's pass as soon as the lowest score is separated from all others at this confidence.
    parity : ``official`` for the published code's scores, its faults included.
    origin : where model and windows come from; :meth:`result` needs it.
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
        span: int = 1,
        lookahead: bool = False,
        confidence: float | None = None,
        parity: str | None = None,
        backend: str | None = None,
        progress: Progress = silent,
        origin: Origin | None = None,
    ) -> None:
        self.decoder = decoder
        """The model, whose weights are read and never written."""
        self._origin, self._progress = origin, progress
        self._steps: list[_Step] = []
        self._scored: LayerStack | None = None  # what the last scores are of
        self.sequence_scores: SequenceScores | None = None
        self._metric = METRICS[metric]()
        self._compensate = COMPENSATIONS[compensation]
        self._reads_states = self._metric.reads_states or bool(getattr(self._compensate, "reads_states", False))
        self._candidates = list(range(decoder.num_layers) if candidates is None else candidates)
        self._span, self._seed, self._given = span, seed, tuple(given)
        self._lookahead, self._confidence, self._parity = lookahead, confidence, parity
        if placement is None:
            memory = available_memory(decoder.device)
            shape = model_shape(decoder.model, decoder.family, decoder.dtype)
            placement = place(
                shape, windows.count, windows.seqlen, memory, decoder.device, resident=True, processes=world_size(),
                demand=self._metric.demand(shape, span),
            )  # fmt: skip
        self.placement = placement
        """What is kept where."""
        self._run = Run(
            decoder, windows, placement, candidates=self._candidates, cache=cache,
            spans=self._metric.needs_gram(span, parity),
            along_tokens=self._metric.needs_cosines_along_tokens(parity), backward=self._metric.backward,
            shards=1 if confidence is None else max(1, min(LOOKS, windows.count // world_size())),
            backend=backend, progress=progress,
        )  # fmt: skip
        self.statistics = self._run.statistics
        """Those of the last scores; a one-shot run goes on using them when layers are gone."""
        self.blocks: dict[int, tuple[int, ...]] = {}
        """The neighbours that each of the last scores is for."""

    def __repr__(self) -> str:
        gone = f"layers {listed(self.removed)} gone" if self.removed else "none gone"
        return f"<Pruner of {self.stack.num_layers} layers, {gone}, by {type(self._metric).__name__}>"

    @property
    def stack(self) -> LayerStack:
        """What survives."""
        return self._run.stack

    @property
    def layer_forwards(self) -> float:
        """Passes of the calibration set through one layer, so far."""
        return self._run.layer_forwards

    @property
    def sequences(self) -> int:
        """Calibration sequences that the statistics rest on."""
        return len(self.statistics.tokens)

    @property
    def removed(self) -> list[int]:
        """Original indices of the layers that :meth:`remove` took out, in the order of their removal."""
        return [layer for step in self._steps for layer in step.record.block]

    def release(self) -> None:
        """Let go of the states that are kept; what was scored and removed stays."""
        self._run.release()

    def _round_candidates(self, most: int | None = None) -> Candidates:
        """What the metric looks at; ``most`` layers may still go."""
        return Candidates(
            run=self._run,
            layers=[layer for layer in self._candidates if layer in self.stack.alive],
            span=self._span if most is None else min(self._span, most),
            seed=self._seed,
            given=self._given,
            parity=self._parity,
            lookahead=(lambda block: self._estimate(block, self._run.statistics).scale) if self._lookahead else None,
        )

    def score(self, *, keep: bool = True, most: int | None = None) -> dict[int, float]:
        """The metric of every surviving layer, or block of layers, by the original index of its lowest.

        ``keep`` off promises that no score will follow; ``most`` is how many layers may still go.
        """
        candidates = self._round_candidates(None if most is None else whole("most", most, 1))
        for shard in self._run.shards:
            self._run.update(shard, keep=keep or self._reads_states)
            self._metric.observe(candidates, shard)
            if self._confidence is not None and self._decided(candidates):
                break
        self.statistics = self._run.statistics
        self._run.scores = self._metric.score(candidates)
        self.blocks = {first: candidates.block(first) for first in self._run.scores}
        self._scored = self.stack
        self.sequence_scores = SequenceScores.of(self._metric, candidates)
        return self._run.scores

    def _decided(self, candidates: Candidates) -> bool:
        assert self._confidence is not None
        layers, sums = self._metric.sequence_scores(candidates)
        columns = [i for i, layer in enumerate(layers) if set(candidates.block(layer)) <= set(candidates.layers)]
        return separated(sums[:, columns], self._run.windows.count, self._confidence)

    def _estimate(self, block: tuple[int, ...], statistics: Statistics) -> Seam:
        return self._compensate(Removal(self._run, block, statistics))

    def _cut(self, *block: int) -> Seam:
        """Remove a surviving layer, or neighbours from below, and put the compensation, estimated from the last
        scores' statistics, in their place: of the dense model in a one-shot run. There is no way back."""
        seam = self._estimate(block, self.statistics)
        self._put(block, seam)
        return seam

    def _record(
        self, block: tuple[int, ...], seam: Seam, scores: Mapping[int, float], spent: float, started: float,
        free: Collection[int],
    ) -> RoundRecord:  # fmt: skip
        """What is to be told of a removal just made among layers that were ``free`` to go, at a time when so many
        layer-forwards were ``spent`` before it began, ``started`` on the performance counter."""
        sure = self.sequence_scores.certainty(block, free) if self.sequence_scores is not None and scores else None
        return RoundRecord(
            layer=block[0], block=list(block), score=scores.get(block[0]), scale=seam.scale, scores=dict(scores),
            layer_forwards=self.layer_forwards - spent, zero_rows=int(self.statistics.of(block[0]).zero_rows.sum()),
            dead_channels=seam.dead_channels, sequences=self.sequences, chosen=seam.chosen,
            losses=dict(seam.losses), seconds=time.perf_counter() - started, **({} if sure is None else sure.fields()),
        )  # fmt: skip

    def remove(self, *block: int) -> Seam:
        """Remove a surviving layer, or neighbours at once, and put the compensation in their place.

        It is estimated on the model as it stands, whose statistics are brought up to date first where they are not.
        Returns the seam: its ``scale``, and what else the compensation says of itself. :meth:`undo` takes it back.

        Raises :class:`OptionError` for layers that are not there, are no neighbours, are several where ``span`` is 1,
        or are all that is left; :class:`prunecomp.errors.NumericalError` where no scale can be estimated. The model is
        then as it was.
        """
        started, spent = time.perf_counter(), self.layer_forwards
        block = self.stack.neighbours(tuple(layer_numbers("remove:", block)))
        if len(block) > 1 and self._span == 1:
            raise OptionError(
                f"remove: {len(block)} layers at once need statistics across them: "
                + (f"make the pruner with span={len(block)}, or " if self._metric.spans else "")
                + "remove them one by one"
            )
        for shard in self._run.shards:
            self._run.update(shard)
        self.statistics = self._run.statistics
        before = self._run.snapshot()
        fresh = self._scored is self.stack and self.blocks.get(block[0]) == block
        scores = dict(self._run.scores) if fresh else {}
        scored, free = self._scored, set(self._candidates) & set(self.stack.alive)
        seam = self._cut(*block)
        record = self._record(block, seam, scores, spent, started, free)
        self._steps.append(_Step(before, self.blocks, scored, record, self.sequence_scores))
        return seam

    def undo(self) -> tuple[int, ...]:
        """Take back the last :meth:`remove`, and return its layers: scores, statistics, scales and losses are bit for
        bit what they were. States that are still right are kept, so that scoring again runs nothing, or, for metrics
        and compensations that read states, what lies above the cut.

        Raises :class:`OptionError` where nothing is left to take back.
        """
        if not self._steps:
            raise OptionError("undo: no layer has been removed; call remove() first")
        step = self._steps.pop()
        self._run.restore(step.before, states=self._reads_states or self._metric.backward)
        if self._metric.reads_states:
            self._metric = type(self._metric)()  # what it has kept is of the model that was
        self.blocks, self._scored, self.sequence_scores = dict(step.blocks), step.scored, step.sequence_scores
        self.statistics = self._run.statistics
        return tuple(step.record.block)

    def loss(self, windows: Any = None) -> float:
        """Next-token loss of the model as it stands, in nats a token: on the calibration windows, of which only what
        lies above the lowest change is run; or on ``windows``, token ids [N, S] (negative ids at the end of a row are
        padding), [T] for a single window, or :class:`~prunecomp.data.windows.Windows`, which are run whole.

        Raises :class:`prunecomp.errors.DataError` for windows that hold nothing to run, and :class:`OptionError` for a
        row longer than the model has positions for, or for one of [T] that is longer than its context.
        """
        if windows is None:
            return self._run.loss()
        context = context_of(self.decoder.config)
        windows = loose_windows(windows, self.decoder.vocab_size, context)
        check_context(windows.seqlen, self.decoder.position_rows, context)
        run = Run(self.decoder, windows, self.placement, stack=self.stack, measured=False, progress=self._progress)
        return run.loss(keep=False)

    def result(self, fold: str = "up") -> PruneResult:
        """What was removed so far, to be saved or applied; the pruner can go on, and the result stays as it is.

        Its options are those of the pruner, with the removals as ``given``; a removal has a score if its layers had
        been scored just before. ``fold`` as in :func:`prunecomp.prune`. Raises :class:`OptionError` where nothing
        was removed, or where the pruner was not made by :func:`prunecomp.pruner_for`."""
        if self._origin is None:
            raise OptionError("result: a pruner made of a bare decoder knows no model to save; use pruner_for()")
        if not self._steps:
            raise OptionError("result: no layer has been removed; call remove() first")
        rounds = [step.record for step in self._steps]
        form: Any = one_of("--fold", fold, FORMS)
        options = replace(self._origin.options, fold=form)
        options.check(METRICS, COMPENSATIONS)
        options = replace(options, layers=len(self.removed), given=self.removed)
        return PruneResult(
            options=options, model_source=self._origin.model_source, stack=self.stack, rounds=rounds,
            calibration=self._origin.calibration, evaluation=None, placement=self.placement, compiled=False,
            layer_forwards=self.layer_forwards, perplexity=None, seconds=sum(r.seconds for r in rounds),
        )  # fmt: skip

    def _put(self, block: tuple[int, ...], seam: Seam) -> None:
        """Remove neighbouring survivors with a compensation that is already known."""
        put_in_place(self._run, block, seam)

    def scale_of(self, *block: int) -> float:
        """The scale that removing these neighbours now would leave behind."""
        return self._estimate(block, self.statistics).scale
