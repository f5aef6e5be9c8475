"""A :class:`Pruner` for callers that decide themselves: made in one call, driven step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from typing_extensions import Unpack

from prunecomp.compensation import COMPENSATIONS
from prunecomp.engine.usual import usual
from prunecomp.errors import OptionError
from prunecomp.metrics import METRICS
from prunecomp.options import PruneOptions
from prunecomp.options.keywords import PrunerForKeywords
from prunecomp.pruning.pruner import Pruner
from prunecomp.pruning.result import Origin
from prunecomp.pruning.session import Session, candidates_of


@usual()
def pruner_for(model: Any, calibration: Any = None, **options: Unpack[PrunerForKeywords]) -> Pruner:
    """A :class:`Pruner` to drive step by step: ``score()``, ``remove(layer)``, ``undo()``, ``loss()``, ``result()``.

    Parameters
    ----------
    model : a transformers causal language model in memory, used where it is, on any device, and never written to; or a
        local folder or hub id, which is loaded (streamed where memory does not hold it).
    metric, compensation : by name, as in :func:`prunecomp.prune`.
    span : the most neighbours that one ``remove`` may take, and the block length that ``score()`` scores; above 1 for
        the metrics ``bi``, ``span`` and ``angular``.
    candidates : layers that are likely to go, and that ``score()`` may look at alone where looking costs, as with
        ``ppl``; by default those of the metric. ``remove`` takes any layer.

    The options are those of :func:`prunecomp.prune`; ``dtype``, ``device`` and ``attn`` are for models that are
    loaded here. Before the first call only a few rows are run, to see that layers can move. Raises a subclass of
    :class:`prunecomp.errors.PrunecompError`.

    >>> tokens = torch.arange(64).view(2, 32)  # int64 [N, S]
    >>> pruner = prunecomp.pruner_for("examples/reference_model", tokens, dtype="float32")
    >>> scores = pruner.score()  # by original layer index
    >>> seam = pruner.remove(min(scores, key=scores.get))
    >>> if pruner.loss() > 100.0:  # nats a token
    ...     pruner.undo()
    >>> len(pruner.result().removed)
    1
    """
    asked = PruneOptions.of("pruner_for", {"calibration": calibration, **options})
    span = asked.span or 1
    asked = replace(asked, span=span, layers=span, compile="off")
    asked.check(METRICS, COMPENSATIONS)
    session = Session(model, asked)
    num_layers = session.model_source.num_layers
    if span >= num_layers:
        raise OptionError(f"--span {span}: the model has {num_layers} layers, and one must stay")
    candidates = candidates_of(replace(asked, layers=1), num_layers)
    windows = session.calibration()
    placement = session.place(windows.count, windows.seqlen, session.demand())
    return session.pruner(
        windows, placement, candidates=candidates, moving=[min(candidates)],
        origin=Origin(session.model_source, asked, windows),
    )  # fmt: skip
