"""The loop: score, remove, compensate, repeat."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prunecomp.compensation import COMPENSATIONS, Seam
from prunecomp.data.sources import read_source
from prunecomp.data.windows import Windows, consecutive_windows, default_seqlen, draw_windows
from prunecomp.engine.placement import micro_batch
from prunecomp.engine.progress import Progress, silent
from prunecomp.engine.sinks import PairStatistics
from prunecomp.engine.states import StateCache
from prunecomp.engine.sweep import Sweeper
from prunecomp.errors import OptionError
from prunecomp.evaluation.perplexity import perplexity
from prunecomp.metrics import METRICS
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.result import PruneOptions, PruneResult, RoundRecord, ScoreResult
from prunecomp.subject import Subject, open_subject

WORK_UNIT = "layers x windows"


class Pruner:
    """A model being pruned: what survives, the statistics that are valid, and the states below each cut.

    The weights of ``decoder`` are read and never written. ``score`` brings the statistics up to date by running only
    what lies above the lowest change since the last call; without ``cache`` it runs everything, to the same bits.
    """

    def __init__(
        self,
        decoder: Decoder,
        windows: Windows,
        *,
        metric: str = "bi",
        compensation: str = "scale",
        cache: bool = True,
        progress: Progress = silent,
    ) -> None:
        self.decoder = decoder
        self.windows = windows
        self.stack = LayerStack.dense(decoder.num_layers)
        self.metric = METRICS[_known("--metric", metric, METRICS)]()
        self._compensate = COMPENSATIONS[_known("--compensation", compensation, COMPENSATIONS)]
        self._cache = cache
        self._progress = progress
        batch = micro_batch(windows.count, windows.seqlen)
        self._sweeper = Sweeper(decoder, windows, batch)
        self._statistics = PairStatistics(windows.count, windows.seqlen)
        state_bytes = windows.tokens.numel() * decoder.hidden_size * decoder.dtype.itemsize
        self._states = StateCache.for_run(
            self._sweeper.num_chunks, state_bytes * decoder.num_layers if cache else 0, decoder.device
        )
        self._stale_from: int | None = 0

    @property
    def layer_forwards(self) -> int:
        """Passes of the calibration set through one layer, so far."""
        return self._sweeper.layer_forwards

    def score(self) -> dict[int, float]:
        """The metric of every surviving layer, by original index."""
        if self._stale_from is not None:
            start = self._stale_from if self._cache else 0
            above = len(self.stack.alive) - start
            with self.decoder.evaluating(), self._progress("scoring", above * self.windows.count, WORK_UNIT) as advance:
                self._sweeper.sweep(
                    self.stack, start, self._states, [self._statistics], advance=advance, keep=self._cache
                )
            self._stale_from = None
        return self.metric.score(self._statistics, self.stack)

    def remove(self, layer: int) -> Seam:
        """Remove a surviving layer and put its compensation, estimated from the last statistics, in its place."""
        seam = self._compensate(self._statistics, layer)
        p = self.stack.position(layer)
        self.stack = self.stack.remove(layer, seam.scale)
        if self._cache:
            self._states.move(layer, self.stack.alive[p] if p < len(self.stack.alive) else None)
        self._stale_from = p if self._stale_from is None else min(self._stale_from, p)
        return seam

    def scale_of(self, layer: int) -> float:
        """The scale that removing ``layer`` now would leave behind."""
        return self._compensate(self._statistics, layer).scale

    def zero_rows(self, layer: int) -> int:
        """Calibration tokens at which the layer's input or output is the zero vector."""
        return self._statistics.zero_rows(layer)


def _known(option: str, name: str, table: Iterable[str]) -> str:
    if name not in table:
        raise OptionError(f"{option} {name}: choose {', '.join(sorted(table))}")
    return name


def choose_candidates(
    num_layers: int, layers: int, keep: Iterable[int] = (), candidates: Iterable[int] | None = None
) -> list[int]:
    """The layers that may be removed. Raises :class:`OptionError` unless there are more of them than ``layers``."""
    keep = set(keep)
    chosen = set(range(num_layers)) if candidates is None else set(candidates)
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


def run_rounds(pruner: Pruner, layers: int, candidates: list[int], one_shot: bool) -> list[RoundRecord]:
    """Remove ``layers`` layers, re-scoring before each removal, or only before the first if ``one_shot``."""
    rounds: list[RoundRecord] = []
    scores: dict[int, float] = {}
    left = list(candidates)
    for number in range(layers):
        started, forwards = time.perf_counter(), pruner.layer_forwards
        if number == 0 or not one_shot:
            scores = pruner.score()
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
                layer_forwards=pruner.layer_forwards - forwards,
                zero_rows=zero_rows,
                dead_channels=seam.dead_channels,
                seconds=time.perf_counter() - started,
            )
        )
    return rounds


def prune(
    model: Any,
    layers: int,
    calibration: Any,
    *,
    samples: int = 128,
    seqlen: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    metric: str = "bi",
    compensation: str = "scale",
    one_shot: bool = False,
    keep: Iterable[int] = (),
    candidates: Iterable[int] | None = None,
    fold: str = "up",
    eval: Any = None,
    tokenizer: Any = None,
    allow_pickle: bool = False,
    cache: bool = True,
    progress: Progress = silent,
) -> PruneResult:
    """Prune ``layers`` decoder layers and compensate for them (Prune&Comp, arXiv 2507.18212).

    Parameters
    ----------
    model : a local folder, a hub id, or a transformers causal language model in memory, whose weights stay untouched.
    calibration, eval : token ids ([T] is sampled, [N, S] taken as it stands), a path to text, .jsonl or .npy, the name
        of a protocol (``wikitext2``) or of a dataset.
    samples, seqlen, seed : calibration windows; ``seqlen`` defaults to the smaller of 2,048 and the trained context.
    one_shot : rank once and remove the lowest, instead of scoring again after each removal.
    keep, candidates : original layer indices that must stay, or that alone may go.
    fold : ``up`` or ``down``, the form in which :meth:`PruneResult.save` and ``apply`` put seams into weights.
    tokenizer : for text with a model object; a model folder brings its own.

    Returns a :class:`PruneResult`. Raises a subclass of :class:`prunecomp.errors.PrunecompError` that says what to do.
    """
    started = time.perf_counter()
    options = PruneOptions(
        layers=layers, samples=samples, seqlen=seqlen, seed=seed, dtype=dtype, device=device, metric=metric,
        compensation=compensation, one_shot=one_shot, fold=fold, keep=sorted(keep),
        candidates=None if candidates is None else sorted(candidates),
    )  # fmt: skip
    options.check(METRICS, COMPENSATIONS)
    subject = open_subject(model, dtype=dtype, device=device, tokenizer=tokenizer, allow_pickle=allow_pickle)
    chosen = choose_candidates(subject.num_layers, layers, options.keep, options.candidates)
    windows = calibration_windows(subject, calibration, samples, seqlen, seed)
    eval_windows = None if eval is None else evaluation_windows(subject, eval, seqlen)
    decoder = subject.load()

    pruner = Pruner(decoder, windows, metric=metric, compensation=compensation, cache=cache, progress=progress)
    rounds = run_rounds(pruner, layers, chosen, one_shot)
    measured: dict[str, float] | None = None
    if eval_windows is not None:
        dense = LayerStack.dense(decoder.num_layers)
        measured = {
            "dense": measure(decoder, dense, eval_windows, progress),
            "pruned": measure(decoder, pruner.stack, eval_windows, progress),
        }
    return PruneResult(
        options=options,
        subject=subject,
        stack=pruner.stack,
        rounds=rounds,
        calibration=windows,
        evaluation=eval_windows,
        layer_forwards=pruner.layer_forwards,
        perplexity=measured,
        seconds=time.perf_counter() - started,
    )


def score(
    model: Any,
    calibration: Any,
    *,
    samples: int = 128,
    seqlen: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    metric: str = "bi",
    compensation: str = "scale",
    tokenizer: Any = None,
    allow_pickle: bool = False,
    progress: Progress = silent,
) -> ScoreResult:
    """One round and no change: each layer's score, and the scale that its removal would leave behind."""
    started = time.perf_counter()
    _known("--metric", metric, METRICS)
    _known("--compensation", compensation, COMPENSATIONS)
    subject = open_subject(model, dtype=dtype, device=device, tokenizer=tokenizer, allow_pickle=allow_pickle)
    windows = calibration_windows(subject, calibration, samples, seqlen, seed)
    pruner = Pruner(subject.load(), windows, metric=metric, compensation=compensation, cache=False, progress=progress)
    scores = pruner.score()
    scales = {layer: pruner.scale_of(layer) for layer in scores}
    return ScoreResult(metric, scores, scales, windows.digest, pruner.layer_forwards, time.perf_counter() - started)


def evaluate(
    model: Any,
    eval: Any,
    *,
    seqlen: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    tokenizer: Any = None,
    allow_pickle: bool = False,
    progress: Progress = silent,
) -> float:
    """Perplexity over the non-overlapping windows of a text, each standing alone."""
    subject = open_subject(model, dtype=dtype, device=device, tokenizer=tokenizer, allow_pickle=allow_pickle)
    windows = evaluation_windows(subject, eval, seqlen)
    decoder = subject.load()
    return measure(decoder, LayerStack.dense(decoder.num_layers), windows, progress)


def measure(decoder: Decoder, stack: LayerStack, windows: Windows, progress: Progress) -> float:
    with progress("perplexity", windows.count * len(stack.alive), WORK_UNIT) as advance:
        return perplexity(decoder, stack, windows, advance)


def calibration_windows(subject: Subject, source: Any, samples: int, seqlen: int | None, seed: int) -> Windows:
    tokens = read_source(source, subject.tokenize, subject.config.vocab_size)
    return draw_windows(tokens, samples, seqlen or default_seqlen(subject.config), seed)


def evaluation_windows(subject: Subject, source: str | Path | Any, seqlen: int | None) -> Windows:
    tokens = read_source(source, subject.tokenize, subject.config.vocab_size)
    return consecutive_windows(tokens, seqlen or default_seqlen(subject.config))
