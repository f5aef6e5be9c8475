"""The main jobs as functions: prune, score, evaluate."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunecomp.checkpoint.export import check_export
from prunecomp.checkpoint.numbers import check_layers_move
from prunecomp.compensation import COMPENSATIONS
from prunecomp.data.sources import check_read_once
from prunecomp.data.windows import Windows
from prunecomp.engine.parallel import Workers, from_leader, least, processes_here, rank, world_size
from prunecomp.engine.placement import Demand, Memory, Placement, available_memory, place, should_compile
from prunecomp.engine.progress import Progress, silent
from prunecomp.errors import OptionError
from prunecomp.evaluation.perplexity import perplexity
from prunecomp.io.values import flag, folder_path, function
from prunecomp.metrics import METRICS, check_order
from prunecomp.model.decoder import Decoder
from prunecomp.model.loader import choose_attention
from prunecomp.model.source import ModelSource
from prunecomp.model.stack import LayerStack
from prunecomp.ops.backends import choose
from prunecomp.options import PruneOptions, check_taken, open_model
from prunecomp.pruning.inputs import calibration_windows, evaluation_windows
from prunecomp.pruning.journal import Journal
from prunecomp.pruning.plan import candidates_of
from prunecomp.pruning.plan import rounds as rounds_of_work
from prunecomp.pruning.pruner import Pruner, run_rounds
from prunecomp.pruning.result import Origin, PruneResult, ScoreResult

HELD_OUT = 8
"""One calibration window in so many is held out from scores and fits, for compensations that compare losses."""


def prune(
    model: Any,
    layers: int,
    calibration: Any,
    *,
    samples: int = 128,
    seqlen: int | None = None,
    seed: int = 0,
    documents: bool = False,
    bos: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    metric: str = "bi",
    compensation: str = "scale",
    one_shot: bool = False,
    keep: Iterable[int] = (),
    candidates: Iterable[int] | None = None,
    given: Iterable[int] = (),
    span: int | None = None,
    lookahead: bool = False,
    confidence: float | None = None,
    parity: str | None = None,
    fold: str = "up",
    eval: Any = None,
    tokenizer: Any = None,
    allow_pickle: bool = False,
    cache: bool = True,
    attn: str = "auto",
    compile: str = "auto",
    backend: str | None = None,
    device_memory: int | None = None,
    host_memory: int | None = None,
    disk: str | Path | None = None,
    journal: str | Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> PruneResult:
    """Prune ``layers`` decoder layers and compensate for them (Prune&Comp, arXiv 2507.18212).

    Parameters
    ----------
    model : a local folder, a hub id, or a transformers causal language model in memory, whose weights stay untouched.
    calibration, eval : token ids ([T] is sampled, [N, S] taken as it stands), a path to text, .jsonl, .json, .parquet
        (compressed or not), .npy or .npz, ``-`` for standard input, the name of a protocol (``wikitext2``) or of a
        dataset.
    samples, seqlen, seed : calibration windows; ``seqlen`` defaults to the smaller of 2,048 and the trained context.
    documents : take each line of a JSONL file (each paragraph of a text) as a sample of its own, cut at ``seqlen``.
    bos : ``each`` begins every window with BOS, inside ``seqlen``; ``start`` has it where the tokenizer puts it, as the
        published protocols do; ``auto`` is ``each`` where the tokenizer puts it before a text by itself, and ``start``
        otherwise, for the protocols by name and under ``parity="official"``.
    one_shot : rank once and remove the lowest, instead of scoring again after each removal.
    keep, candidates : original layer indices that must stay, or that alone may go.
    given : with ``metric="given"``, the layers to remove, in order.
    span : how many neighbouring layers go together, for ``bi``, ``span`` and ``angular``; by default all ``layers`` at
        once with ``span``, else one.
    lookahead : with ``metric="ppl"``, judge each candidate with its own compensation in place.
    confidence : end a round as soon as its choice is settled at this confidence, as in 0.999, without looking at the
        sequences that are left; they are shuffled first.
    parity : ``"official"`` reproduces the choices of the published code where it departs from the paper, its faults
        included: see the metrics ``bi``, ``span`` and ``magnitude``. With ``dtype="auto"`` a checkpoint then runs in
        float16, whatever it is stored in. Not reproduced: that code rounds the weights that it scales to float16 in
        every round, and takes the gradients of Taylor+ in float32 on ten sequences of another text.
    fold : ``up`` or ``down``, the form in which :meth:`PruneResult.save` and ``apply`` put seams into weights.
    tokenizer : for text with a model object; a model folder brings its own.
    compile : ``auto``, ``on`` or ``off``: torch.compile of the layers; ``auto`` where the work pays for the compiling.
    attn : attention implementation of transformers, for a model that is loaded here.
    backend : of the statistics; see :func:`prunecomp.ops.layer_stats`.
    device_memory, host_memory, disk : bytes that weights and states may take, and a folder for states that do not fit;
        by default what is free less a margin, and no disk. A model that does not fit is streamed layer by layer.
    journal, resume : a file that takes each round as it ends, and whether to go on with what it holds; saving removes
        it.

    Returns a :class:`PruneResult`. Raises a subclass of :class:`prunecomp.errors.PrunecompError` that says what to do.
    """
    started = time.perf_counter()
    options = PruneOptions.of(
        layers=layers, samples=samples, seqlen=seqlen, seed=seed, documents=documents,
        bos=bos, dtype=dtype, device=device,
        metric=metric, compensation=compensation, one_shot=one_shot, fold=fold, keep=keep, candidates=candidates,
        given=given, span=span, lookahead=lookahead, confidence=confidence, parity=parity, attn=attn, compile=compile,
        backend=backend,
    )  # fmt: skip
    options.check(METRICS, COMPENSATIONS)
    flag("cache", cache)
    if flag("resume", resume) and journal is None:
        raise OptionError("resume: there is nothing to go on with without a journal; give one, or leave it out")
    function("progress", progress)
    model_source = open_model(model, options, tokenizer, allow_pickle)
    chosen = candidates_of(options, model_source.num_layers)
    layers, samples, seqlen, seed = options.layers, options.samples, options.seqlen, options.seed
    replaces = getattr(COMPENSATIONS[compensation], "replaces_weights", False)
    check_export(model_source, chosen, None if compensation == "none" else options.fold, replaces)
    check_read_once([calibration, eval])
    windows = calibration_windows(model_source, calibration, samples, seqlen, seed, documents, options.window_bos)
    check_taken(windows, samples, seqlen, documents)
    eval_windows = None if eval is None else evaluation_windows(model_source, eval, seqlen, options.window_bos)
    for some in (windows, *([] if eval_windows is None else [eval_windows])):
        Workers.current(some.count)  # too few for the processes is told before any work
    demand = METRICS[metric]().demand(model_source.shape(), options.block_size(METRICS))
    placement = place_run(model_source, windows, device_memory, host_memory, disk, demand)
    compiled = compiles(compile, model_source, windows, placement, 1 if one_shot else layers)
    with open_journal(journal, resume, model_source, options, windows, placement, compiled, chosen) as log:
        decoder = load(model_source, placement, compiled)
        check_layers_move(decoder, options.given[:layers] if metric == "given" else [min(chosen)], windows.tokens[0])
        pruner = pruner_of(
            decoder, windows, placement, options, candidates=chosen, cache=cache, backend=backend, progress=progress
        )
        rounds = run_rounds(
            pruner, layers, chosen, one_shot,
            done=() if log is None else tuple(log.rounds), overlays=None if log is None else log.overlays,
            on_round=None if log is None else log.append,
        )  # fmt: skip
        measured: dict[str, float] | None = None
        if eval_windows is not None:
            dense = LayerStack.dense(decoder.num_layers)
            measured = {
                "dense": perplexity(decoder, dense, eval_windows, placement, progress),
                "pruned": perplexity(decoder, pruner.stack, eval_windows, placement, progress),
            }
    return PruneResult(
        options=options,
        model_source=model_source,
        stack=pruner.stack,
        rounds=rounds,
        calibration=windows,
        evaluation=eval_windows,
        placement=placement,
        compiled=compiled,
        layer_forwards=pruner.layer_forwards,
        perplexity=measured,
        seconds=time.perf_counter() - started,
        on_saved=None if log is None else log.remove,
    )


def arrange(windows: Windows, options: PruneOptions) -> tuple[Windows, Windows | None]:
    """The windows to score and fit on, and those held out for a compensation that compares losses.

    An early stop rests on a random order, and a held-out slice is a random eighth: both are drawn from the seed.
    """
    holds_out = bool(getattr(COMPENSATIONS[options.compensation], "held_out", False))
    if options.confidence is None and not holds_out:
        return windows, None
    windows = windows.shuffled(options.seed)
    if not holds_out:
        return windows, None
    count = max(world_size(), windows.count // HELD_OUT)
    if count >= windows.count:
        raise OptionError(f"--compensation {options.compensation} holds windows out: give at least two --samples")
    return windows.take(slice(0, windows.count - count)), windows.take(slice(windows.count - count, windows.count))


def pruner_of(
    decoder: Decoder,
    windows: Windows,
    placement: Placement,
    options: PruneOptions,
    *,
    candidates: Sequence[int] | None = None,
    cache: bool = True,
    backend: str | None = None,
    progress: Progress = silent,
    origin: Origin | None = None,
) -> Pruner:
    """The pruner that ``options`` ask for, over ``windows`` arranged as they need it."""
    seen, held_out = arrange(windows, options)
    return Pruner(
        decoder, seen, metric=options.metric, compensation=options.compensation, cache=cache, placement=placement,
        candidates=candidates, held_out=held_out, seed=options.seed, given=options.given,
        span=options.block_size(METRICS), lookahead=options.lookahead, confidence=options.confidence,
        parity=options.parity, backend=backend, progress=progress, origin=origin,
    )  # fmt: skip


@contextmanager
def open_journal(
    path: str | Path | None,
    resume: bool,
    model_source: ModelSource,
    options: PruneOptions,
    windows: Windows,
    placement: Placement,
    compiled: bool,
    candidates: Collection[int],
) -> Iterator[Journal | None]:
    """The journal of a run, bound to all that its choices depend on, and to this run while it lasts."""
    if path is None:
        yield None
        return
    file = folder_path("journal", path)
    identity = identity_of(model_source, options, windows, placement, compiled, left_out=("fold", "device"))
    with ExitStack() as held:

        def opened() -> Journal:
            held.enter_context(Journal.claimed(file))
            journal = Journal.open(file, identity, resume=resume)
            journal.check(model_source.num_layers, candidates, options.layers)
            return journal

        # Read in one place: another machine may not see the file, or not its last state.
        journal = from_leader(opened)
        yield journal if rank() == 0 else journal.followed(identity)


def identity_of(
    model_source: ModelSource,
    options: PruneOptions,
    windows: Windows,
    placement: Placement,
    compiled: bool,
    left_out: Collection[str],
) -> dict[str, Any]:
    """All that choices and numbers depend on: model, data, how they are run, and the options but those ``left_out``."""
    decisive = {name: value for name, value in asdict(options).items() if name not in left_out}
    decisive["attn"] = choose_attention(options.attn, model_source.config, model_source.device, model_source.dtype)
    decisive["backend"] = choose("layer_stats", model_source.device.type, model_source.dtype, options.backend).backend
    return {
        "model": model_source.fingerprint(),
        "calibration": windows.digest,
        "micro_batch": placement.micro_batch,
        "compiled": compiled,
        "device_type": model_source.device.type,
        "options": decisive,
    }


def score(
    model: Any,
    calibration: Any,
    *,
    samples: int = 128,
    seqlen: int | None = None,
    seed: int = 0,
    documents: bool = False,
    bos: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    metric: str = "bi",
    compensation: str = "scale",
    given: Iterable[int] = (),
    span: int | None = None,
    lookahead: bool = False,
    parity: str | None = None,
    tokenizer: Any = None,
    allow_pickle: bool = False,
    attn: str = "auto",
    compile: str = "auto",
    backend: str | None = None,
    device_memory: int | None = None,
    host_memory: int | None = None,
    disk: str | Path | None = None,
    progress: Progress = silent,
) -> ScoreResult:
    """One round and no change: each layer's score, and the scale that its removal would leave behind.

    With ``span``, each block of so many neighbours has its score and scale, under its lowest layer.
    """
    started = time.perf_counter()
    options = PruneOptions.of(
        span=span, layers=1 if span is None else span, samples=samples, seqlen=seqlen, seed=seed, documents=documents,
        bos=bos,
        dtype=dtype, device=device, metric=metric, compensation=compensation, given=given, lookahead=lookahead,
        parity=parity, attn=attn, compile=compile, backend=backend,
    )  # fmt: skip
    options.check(METRICS, COMPENSATIONS)
    function("progress", progress)
    model_source = open_model(model, options, tokenizer, allow_pickle)
    if options.layers > model_source.num_layers:
        raise OptionError(f"--span {span}: the model has {model_source.num_layers} layers")
    if METRICS[metric].takes_order:
        check_order(options.given, model_source.num_layers)  # before any work, not after the pass
    samples, seqlen, seed = options.samples, options.seqlen, options.seed
    windows = calibration_windows(model_source, calibration, samples, seqlen, seed, documents, options.window_bos)
    check_taken(windows, samples, seqlen, documents)
    demand = METRICS[metric]().demand(model_source.shape(), options.block_size(METRICS))
    placement = place_run(model_source, windows, device_memory, host_memory, disk, demand)
    decoder = load(model_source, placement, compiles(compile, model_source, windows, placement, 1))
    pruner = pruner_of(decoder, windows, placement, options, backend=backend, progress=progress)
    scores = pruner.score(keep=False)
    scales = {layer: pruner.scale_of(*pruner.blocks[layer]) for layer in scores}
    return ScoreResult(
        metric, scores, scales, windows.digest, pruner.layer_forwards, time.perf_counter() - started,
        similarity=pruner.statistics.similarity,
    )  # fmt: skip


def evaluate(
    model: Any,
    eval: Any,
    *,
    seqlen: int | None = None,
    bos: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    tokenizer: Any = None,
    allow_pickle: bool = False,
    attn: str = "auto",
    device_memory: int | None = None,
    host_memory: int | None = None,
    disk: str | Path | None = None,
    progress: Progress = silent,
) -> float:
    """Perplexity over the non-overlapping windows of a text, each standing alone."""
    options = PruneOptions.of(layers=1, seqlen=seqlen, bos=bos, dtype=dtype, device=device, attn=attn)
    function("progress", progress)
    model_source = open_model(model, options, tokenizer, allow_pickle)
    windows = evaluation_windows(model_source, eval, options.seqlen, options.bos)
    check_taken(windows, PruneOptions.samples, options.seqlen)
    placement = place_run(model_source, windows, device_memory, host_memory, disk)
    decoder = model_source.load(placement.group_size)
    return perplexity(decoder, LayerStack.dense(decoder.num_layers), windows, placement, progress)


def compiles(option: str, model_source: ModelSource, windows: Windows, placement: Placement, layers: int) -> bool:
    """Whether the layers are compiled for a run of so many rounds."""
    work = rounds_of_work(model_source.shape(), placement, windows.count, windows.seqlen, layers)
    return should_compile(option, work[-1].flops, model_source.device)


def load(model_source: ModelSource, placement: Placement, compiled: bool) -> Decoder:
    decoder = model_source.load(placement.group_size)
    if compiled:
        decoder.compile()
    return decoder


def place_run(
    model_source: ModelSource,
    windows: Windows,
    device_memory: int | None,
    host_memory: int | None,
    disk: str | Path | None,
    demand: Demand | None = None,
) -> Placement:
    """The placement of a run over ``windows`` within limits in bytes; no weights are loaded."""
    folder = None if disk is None else folder_path("--disk", disk)
    memory = available_memory(model_source.device, device_memory, host_memory, folder, processes=processes_here())
    # Every process must come to the same placement.
    on_device, on_host, on_disk = least(memory.device, memory.host, memory.disk)
    memory = Memory(on_device, on_host, on_disk, memory.disk_folder)
    return place(
        model_source.shape(),
        windows.count,
        windows.seqlen,
        memory,
        model_source.device,
        resident=model_source.resident,
        processes=world_size(),
        demand=demand,
    )
