"""A :class:`Pruner` for callers that decide themselves: made in one call, driven step by step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunecomp.api import load, place_run, pruner_of
from prunecomp.checkpoint.numbers import check_layers_move
from prunecomp.compensation import COMPENSATIONS
from prunecomp.engine.parallel import Workers
from prunecomp.engine.progress import Progress, silent
from prunecomp.errors import OptionError
from prunecomp.io.values import function
from prunecomp.metrics import METRICS
from prunecomp.options import PruneOptions, check_taken, open_model
from prunecomp.pruning.inputs import calibration_windows
from prunecomp.pruning.plan import candidates_of
from prunecomp.pruning.pruner import Pruner
from prunecomp.pruning.result import Origin


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
    bos: str = "auto",
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
    loaded here. Before the first call only a few rows are run, to see that layers can move. Raises a subclass of
    :class:`prunecomp.errors.PrunecompError`.

    >>> pruner = prunecomp.pruner_for(model, tokens)        # tokens: int64 [N, S]
    >>> scores = pruner.score()                             # by original layer index
    >>> seam = pruner.remove(min(scores, key=scores.get))
    >>> if pruner.loss() > 3.0:                             # nats a token
    ...     pruner.undo()
    >>> pruner.result().save("pruned")
    """
    options = PruneOptions.of(
        span=span, layers=span, samples=samples, seqlen=seqlen, seed=seed, documents=documents, bos=bos, dtype=dtype,
        device=device, metric=metric, compensation=compensation, candidates=candidates, attn=attn, compile="off",
        backend=backend,
    )  # fmt: skip
    options.check(METRICS, COMPENSATIONS)
    function("progress", progress)
    model_source = open_model(model, options, tokenizer, allow_pickle)
    samples, seqlen, seed, span = options.samples, options.seqlen, options.seed, options.layers
    if span >= model_source.num_layers:
        raise OptionError(f"--span {span}: the model has {model_source.num_layers} layers, and one must stay")
    chosen = candidates_of(replace(options, layers=1), model_source.num_layers)
    windows = calibration_windows(model_source, calibration, samples, seqlen, seed, documents, options.window_bos)
    check_taken(windows, samples, seqlen, documents)
    Workers.current(windows.count)  # too few for the processes is told before any work
    placement = place_run(
        model_source, windows, device_memory, host_memory, disk, METRICS[metric]().demand(model_source.shape(), span)
    )
    decoder = load(model_source, placement, compiled=False)
    check_layers_move(decoder, [min(chosen)], windows.tokens[0])
    return pruner_of(
        decoder, windows, placement, options, candidates=chosen, backend=backend,
        progress=progress, origin=Origin(model_source, options, windows),
    )  # fmt: skip
