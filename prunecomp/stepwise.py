"""A :class:`Pruner` for callers that decide themselves: made in one call, driven step by step."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prunecomp.api import load, place_run, pruner_of
from prunecomp.compensation import COMPENSATIONS
from prunecomp.engine.parallel import Workers
from prunecomp.engine.progress import Progress, silent
from prunecomp.errors import OptionError
from prunecomp.inputs import calibration_windows
from prunecomp.metrics import METRICS
from prunecomp.ops import requested
from prunecomp.pruner import Pruner, choose_candidates
from prunecomp.result import Origin, PruneOptions
from prunecomp.subject import open_subject


def pruner_for(
    model: Any,
    calibration: Any,
    *,
    metric: str = "bi",
    compensation: str = "scale",
    span: int = 1,
    candidates: Iterable[int] | None = None,
    samples: int = 128,
    seqlen: int | None = None,
    seed: int = 0,
    documents: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    tokenizer: Any = None,
    allow_pickle: bool = False,
    attn: str = "auto",
    backend: str | None = None,
    device_memory: int | None = None,
    host_memory: int | None = None,
    disk: str | Path | None = None,
    progress: Progress = silent,
) -> Pruner:
    """A :class:`Pruner` to drive step by step: ``score()``, ``remove(layer)``, ``undo()``, ``loss()``, ``result()``.

    Parameters
    ----------
    model : a transformers causal language model in memory, used where it is, on any device, and never written to; or a
        local folder or hub id, which is loaded (streamed where memory does not hold it).
    metric, compensation : by name, as in :func:`prunecomp.prune`. With the compensation ``auto`` an eighth of the
        windows is held out: no score, and not ``loss()`` either, sees them.
    span : the most neighbours that one ``remove`` may take, and the block length that ``score()`` scores; above 1 for
        the metrics ``bi``, ``span`` and ``angular``.
    candidates : layers that are likely to go, and that ``score()`` may look at alone where looking costs, as with
        ``ppl``; by default those of the metric. ``remove`` takes any layer.

    The other options are those of :func:`prunecomp.prune`; ``dtype``, ``device`` and ``attn`` are for models that are
    loaded here. Nothing is run before the first call. Raises a subclass of :class:`prunecomp.errors.PrunecompError`.

    >>> pruner = prunecomp.pruner_for(model, tokens)        # tokens: int64 [N, S]
    >>> scores = pruner.score()                             # by original layer index
    >>> seam = pruner.remove(min(scores, key=scores.get))
    >>> if pruner.loss() > 3.0:                             # nats a token
    ...     pruner.undo()
    >>> pruner.result().save("pruned")
    """
    options = PruneOptions(
        layers=max(span, 1), samples=samples, seqlen=seqlen, seed=seed, documents=documents, dtype=dtype,
        device=device, metric=metric, compensation=compensation, span=span,
        candidates=None if candidates is None else sorted(candidates), attn=attn, compile="off",
        backend=requested(backend),
    )  # fmt: skip
    options.check(METRICS, COMPENSATIONS)
    subject = open_subject(
        model, dtype=options.compute_dtype, device=device, tokenizer=tokenizer, allow_pickle=allow_pickle,
        attention=attn,
    )  # fmt: skip
    if span >= subject.num_layers:
        raise OptionError(f"--span {span}: the model has {subject.num_layers} layers, and one must stay")
    chosen = choose_candidates(
        subject.num_layers, 1, (), options.candidates, METRICS[metric]().barriers(subject.num_layers)
    )
    windows = calibration_windows(subject, calibration, samples, seqlen, seed, documents)
    Workers.current(windows.count)  # too few for the processes is told before any work
    placement = place_run(
        subject, windows, device_memory, host_memory, disk, METRICS[metric]().demand(subject.shape(), span)
    )
    return pruner_of(
        load(subject, placement, compiled=False), windows, placement, options, candidates=chosen, backend=backend,
        progress=progress, origin=Origin(subject, options, windows),
    )  # fmt: skip
