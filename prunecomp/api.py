"""The main jobs as functions: prune, score, evaluate."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from typing_extensions import Unpack

from prunecomp.checkpoint.export import check_export
from prunecomp.compensation import COMPENSATIONS
from prunecomp.data.sources import check_read_once
from prunecomp.data.windows import Windows
from prunecomp.engine.parallel import from_leader, rank
from prunecomp.engine.placement import Placement
from prunecomp.errors import FoldError, OptionError
from prunecomp.evaluation.perplexity import perplexity
from prunecomp.metrics import METRICS, check_order
from prunecomp.model.source import ModelSource
from prunecomp.model.stack import LayerStack, Overlay
from prunecomp.options import PruneOptions
from prunecomp.options.keywords import EvaluateKeywords, PruneKeywords, ScoreKeywords
from prunecomp.pruning.journal import Journal
from prunecomp.pruning.judging import judged, perplexities
from prunecomp.pruning.result import PruneResult, RoundRecord
from prunecomp.pruning.rounds import run_rounds
from prunecomp.pruning.scores import ScoreResult
from prunecomp.pruning.session import Session
from prunecomp.pruning.stages import round_of, whole_of
from prunecomp.repair import RIDGE, check_repairable
from prunecomp.repair import repair as fit_repair


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
    started = time.perf_counter()
    asked = PruneOptions.of("prune", {"layers": layers, "calibration": calibration, **options})
    asked.check(METRICS, COMPENSATIONS)
    session = Session(model, asked)
    asked = session.options
    model_source, candidates = session.model_source, session.candidates()
    replaces = may_replace(model_source, asked, candidates)
    check_read_once([asked.calibration, asked.eval])
    windows = session.calibration()
    eval_windows = None if asked.eval is None else session.evaluation(asked.eval)
    placement = session.place(windows.count, windows.seqlen, session.demand())
    compiled = session.compiles(windows, placement, 1 if asked.one_shot else asked.layers)
    count = -(-asked.layers // asked.block_size(METRICS))
    whole = whole_of(asked, model_source.num_layers, windows, eval_windows, placement, count)
    with whole.open(), open_journal(session, windows, placement, compiled, candidates) as journal:
        whole.begin("loading")
        first = asked.given[: asked.layers] if asked.metric == "given" else [min(candidates)]
        pruner = session.pruner(
            windows, placement, compiled=compiled, candidates=candidates, moving=first, progress=whole
        )
        done = () if journal is None else tuple(journal.rounds)
        numbers = itertools.count(len(done) + 1)
        whole.begin(round_of(next(numbers), count))

        def on_round(record: RoundRecord, overlays: Mapping[int, Overlay]) -> None:
            if journal is not None:
                journal.append(record, overlays)
            whole.begin(round_of(next(numbers), count))

        rounds = run_rounds(
            pruner, asked.layers, candidates, asked.one_shot, done=done,
            overlays=None if journal is None else journal.overlays, on_round=on_round,
        )  # fmt: skip
        stack, outcome = pruner.stack, None
        if asked.repair != "none":
            pruner.release()
            stack, outcome = fit_repair(
                pruner.decoder, windows, placement, stack, asked.repair, asked.ridge or RIDGE, replaces=replaces,
                progress=whole,
            )  # fmt: skip
        whole.begin("evaluating")
        quality, found = judged(model_source, stack, placement, asked, eval_windows, whole)
    return PruneResult(
        options=asked,
        model_source=model_source,
        stack=stack,
        rounds=rounds,
        repair=outcome,
        calibration=windows,
        evaluation=eval_windows,
        placement=placement,
        compiled=compiled,
        layer_forwards=pruner.layer_forwards + (0 if outcome is None else outcome.layer_forwards),
        perplexity=perplexities(quality),
        quality=quality,
        profile=found,
        seconds=time.perf_counter() - started,
        on_saved=None if journal is None else journal.remove,
    )


def may_replace(model_source: ModelSource, options: PruneOptions, candidates: Collection[int]) -> bool:
    """Whether a repair may put new weights in place. Raises what is known before any work to have no export, or nothing
    to fit; ``auto`` then does without new weights."""
    fold = None if options.compensation == "none" and options.repair == "none" else options.fold
    asked = bool(getattr(COMPENSATIONS[options.compensation], "replaces_weights", False))
    if options.repair == "auto":
        try:
            check_export(model_source, candidates, fold, True)
        except FoldError:
            check_export(model_source, candidates, fold, asked)
            return False
        return True
    check_export(model_source, candidates, fold, asked or options.repair != "none")
    check_repairable(model_source.described, options.repair)
    return options.repair != "none"


@contextmanager
def open_journal(
    session: Session, windows: Windows, placement: Placement, compiled: bool, candidates: Collection[int]
) -> Iterator[Journal | None]:
    """The journal of a run, bound to all that its choices depend on, and to this run while it lasts."""
    file, options = session.options.journal, session.options
    if file is None:
        yield None
        return
    identity = session.identity(windows, placement, compiled, left_out=("fold", "device"))
    with ExitStack() as held:

        def opened() -> Journal:
            held.enter_context(Journal.claimed(file))
            journal = Journal.open(file, identity, resume=options.resume)
            journal.check(session.model_source.num_layers, candidates, options.layers)
            return journal

        # Read in one place: another machine may not see the file, or not its last state.
        journal = from_leader(opened)
        yield journal if rank() == 0 else journal.followed(identity)


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


def evaluate(model: Any, eval: Any, **options: Unpack[EvaluateKeywords]) -> float:
    """Perplexity over the non-overlapping windows of a text, each standing alone; a remainder is dropped.

    The exponential of the mean loss in nats a predicted token. ``eval`` and options are those of :func:`prune`. Raises
    a subclass of :class:`prunecomp.errors.PrunecompError`.

    >>> tokens = torch.arange(64).view(2, 32)  # [N, S]
    >>> prunecomp.evaluate("examples/reference_model", tokens, dtype="float32") > 1
    True
    """
    session = Session(model, PruneOptions.of("evaluate", {"eval": eval, **options}))
    windows = session.evaluation(eval, as_asked=("seqlen",))
    placement = session.place(windows.count, windows.seqlen)
    decoder = session.load(placement)
    return perplexity(decoder, LayerStack.dense(decoder.num_layers), windows, placement, session.options.progress)
