"""The main jobs as functions: prune, curve, score, evaluate."""

from __future__ import annotations

import time
from dataclasses import replace
from math import nan
from typing import Any

from typing_extensions import Unpack

from prunecomp.compensation import COMPENSATIONS
from prunecomp.data.windows import choose_seqlen
from prunecomp.engine.usual import usual
from prunecomp.errors import OptionError
from prunecomp.evaluation.perplexity import perplexity
from prunecomp.evaluation.tasks import beside_dense
from prunecomp.metrics import METRICS, check_order
from prunecomp.model.stack import LayerStack
from prunecomp.options import PruneOptions
from prunecomp.options.keywords import EvaluateKeywords, PruneKeywords, ScoreKeywords
from prunecomp.pruning.curve import Curve
from prunecomp.pruning.language import check_speaks, language_of
from prunecomp.pruning.result import PruneResult
from prunecomp.pruning.running import run
from prunecomp.pruning.scores import Evaluated, ScoreResult
from prunecomp.pruning.session import Session


@usual()
def prune(
    model: Any, layers: int | None = None, calibration: Any = None, **options: Unpack[PruneKeywords]
) -> PruneResult:
    """Prune ``layers`` decoder layers and compensate for them (Prune&Comp, arXiv 2507.18212).

    Parameters
    ----------
    model : a local folder, a hub id, or a transformers causal language model in memory, whose weights stay untouched.
    layers : how many go. Instead, ``layers_left=25`` says how many stay, or ``keep="80%"`` which share, rounded up.
    calibration : token ids ([T] is sampled, [N, S] taken as it stands), a path to text, .jsonl, .json, .parquet
        (compressed or not), .npy or .npz, ``-`` for standard input, the name of a protocol (``wikitext2``) or of a
        dataset; without it the bundled mixture of four kinds of text is taken. The option ``eval`` is the same.
    options : those of :class:`prunecomp.options.PruneOptions`, where each says what it means; as on the command line,
        so that ``keep="0-3,31"`` and ``device_memory="24GB"`` are understood. A name that there is not is an error.

    ``parity="official"`` reproduces the choices of the published code where it departs from the paper, its faults
    included: see the metrics ``bi``, ``span`` and ``magnitude``. With ``dtype="auto"`` a checkpoint then runs in
    float16, whatever it is stored in. Not reproduced: that code rounds the weights that it scales to float16 in every
    round, and takes the gradients of Taylor+ in float32 on ten sequences of another text.

    Returns a :class:`PruneResult`. Raises a subclass of :class:`prunecomp.errors.PrunecompError` that says what to do.

    >>> text = "examples/reference_model/calibration.txt"
    >>> result = prunecomp.prune("examples/reference_model", 2, text, samples=2, seqlen=32, dtype="float32")
    >>> len(result.removed), result.stack.num_layers
    (2, 16)
    >>> result.save("pruned").name
    'pruned'
    """
    return run(model, PruneOptions.of("prune", {"layers": layers, "calibration": calibration, **options}))[0]


@usual()
def curve(model: Any, layers: Any, calibration: Any = None, **options: Unpack[PruneKeywords]) -> Curve:
    """:func:`prune` to several numbers of layers, ``"1-10"`` or ``[2, 4, 6]``, in one run.

    The loop to the largest passes through the others: each model on the way gets its own repair, and all are measured
    beside one pass of the dense model. Each result of the :class:`Curve` is what :func:`prune` gives for its number
    alone, to the same weights; ``compile="auto"`` is decided for the whole. Options are those of :func:`prune`.

    Raises a subclass of :class:`prunecomp.errors.PrunecompError`; :class:`OptionError` also for numbers that the loop
    does not pass through, as blocks of ``span`` layers leave them out.

    >>> text = "examples/reference_model/calibration.txt"
    >>> found = prunecomp.curve("examples/reference_model", "1-3", text, samples=2, seqlen=32, dtype="float32")
    >>> [len(result.removed) for result in found]
    [1, 2, 3]
    """
    return run(model, PruneOptions.of("curve", {"layers": layers, "calibration": calibration, **options}))


@usual()
def score(model: Any, calibration: Any = None, **options: Unpack[ScoreKeywords]) -> ScoreResult:
    """One round and no change: each layer's score, and the scale that its removal would leave behind.

    With ``span``, each block of so many neighbours has its score and scale, under its lowest layer. Model, calibration
    and options are those of :func:`prune`. Raises a subclass of :class:`prunecomp.errors.PrunecompError`.

    >>> text = "examples/reference_model/calibration.txt"
    >>> found = prunecomp.score("examples/reference_model", text, samples=2, seqlen=32, dtype="float32")
    >>> len(found.scores), set(found.scales) == set(found.scores)
    (16, True)
    """
    started = time.perf_counter()
    asked = PruneOptions.of("score", {"calibration": calibration, **options})
    asked = replace(asked, layers=asked.span or 1)
    asked.check(METRICS, COMPENSATIONS)
    session = Session(model, asked)
    num_layers = session.model_source.num_layers
    if asked.layers > num_layers:
        raise OptionError(f"--span {asked.span}: the model has {num_layers} layers")
    if METRICS[asked.metric].takes_order:
        check_order(asked.given, num_layers)  # before any work, not after the pass
    windows = session.calibration()
    placement = session.place(windows.count, windows.seqlen, session.demand())
    pruner = session.pruner(windows, placement, compiled=session.compiles(windows, placement))
    scores = pruner.score(keep=False)
    sure = pruner.sequence_scores
    scales = {layer: pruner.scale_of(*pruner.blocks[layer]) for layer in scores}
    return ScoreResult(
        asked.metric, scores, scales, windows.digest, pruner.layer_forwards, time.perf_counter() - started,
        similarity=pruner.statistics.similarity,
        intervals={} if sure is None else {i: [x.low, x.high] for i, x in sure.intervals(scores).items()},
    )  # fmt: skip


@usual()
def evaluate(model: Any, eval: Any = None, **options: Unpack[EvaluateKeywords]) -> Evaluated:
    """Perplexity over the non-overlapping windows of a text, each standing alone; a remainder is dropped.

    The exponential of the mean loss in nats a predicted token. With ``tasks``, those of lm-eval too, or alone. ``eval``
    and options are those of :func:`prune` and :func:`prunecomp.profile`. Raises a subclass of
    :class:`prunecomp.errors.PrunecompError`.

    >>> tokens = torch.arange(64).view(2, 32)  # [N, S]
    >>> prunecomp.evaluate("examples/reference_model", tokens, dtype="float32") > 1
    True
    """
    asked = PruneOptions.of("evaluate", {"eval": eval, **options})
    if asked.eval is None and asked.tasks is None:
        raise OptionError("--eval: give a text to measure perplexity on, or --tasks")
    if asked.base is not None and asked.tasks is None:
        raise OptionError("--base: is asked --tasks alone; name some, or leave it out")
    session = Session(model, asked)
    sessions = [session] if asked.base is None else [Session(asked.base, replace(asked, revision=None)), session]
    tasks, config = session.tasks, session.model_source.config
    windows = None if asked.eval is None else session.evaluation(asked.eval, as_asked=("seqlen",))
    shape = (1, choose_seqlen(asked.seqlen, config)) if windows is None else (windows.count, windows.seqlen)
    placed = [(one, one.place(*shape)) for one in sessions]
    found, value = [], nan
    if tasks is not None:
        for one, placement in placed:
            check_speaks(f"--tasks {asked.tasks}", one.model_source, placement)
        for one, placement in placed:
            one.load(placement)
            found.append(tasks.ask(language_of(one.model_source)))
            if one is not session:
                one.model_source.release()
    if windows is not None:
        placement = placed[-1][1]
        decoder = session.load(placement)
        value = perplexity(decoder, LayerStack.dense(decoder.num_layers), windows, placement, asked.progress)
    return Evaluated(value, beside_dense(found[0], found[-1], asked.seed) if found else ())
