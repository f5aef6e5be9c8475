"""The comparison as a function."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prunecomp.api import compiles, load
from prunecomp.compare.arms import Arm, choose_arms, find_preset, named_texts, read_arms, read_grid
from prunecomp.compare.plan import Plan, candidates_of_arm, check_arms
from prunecomp.compare.results import Comparison, Text
from prunecomp.compare.tree import Explorer
from prunecomp.data.sources import check_read_once
from prunecomp.engine.parallel import Workers
from prunecomp.engine.progress import Progress, silent
from prunecomp.errors import JournalError, OptionError
from prunecomp.io.values import function, layer_numbers
from prunecomp.options import PruneOptions, check_taken, open_model
from prunecomp.pruning.inputs import calibration_windows, evaluation_windows
from prunecomp.pruning.journal import differences


def compare(
    model: Any,
    layers: Iterable[int] | None = None,
    calibration: Any = None,
    *,
    eval: Any = None,
    arms: Sequence[Arm] | None = None,
    metrics: Sequence[str] | None = None,
    compensations: Sequence[str] | None = None,
    one_shot: Sequence[bool] | None = None,
    parity: str | None = None,
    preset: str | None = None,
    samples: int | None = None,
    seqlen: int | None = None,
    seed: int = 0,
    documents: bool = False,
    bos: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    keep: Iterable[int] = (),
    candidates: Iterable[int] | None = None,
    given: Iterable[int] = (),
    tokenizer: Any = None,
    allow_pickle: bool = False,
    attn: str = "auto",
    compile: str = "auto",
    backend: str | None = None,
    device_memory: int | None = None,
    host_memory: int | None = None,
    disk: str | Path | None = None,
    earlier: Comparison | None = None,
    on_measured: Callable[[Comparison], None] | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Prune one model in many ways, and measure each after every number of removals in ``layers``.

    The results are those of as many calls of :func:`prunecomp.prune`. Whatever several arms need is computed once:
    statistics and scores of a model, a compensation, a perplexity.

    Parameters
    ----------
    eval : sources by name, a list of sources as ``NAME=PATH`` or without a name, or one source; see
        :func:`prunecomp.data.sources.read_source`. Under the name of a protocol (``wikitext2-test``, ``c4-validation``,
        ``ptb-test``) a file is read as the protocol has it.
    arms : what to compare; or
    metrics, compensations, one_shot, parity : a grid of all of them. ``one_shot`` lists modes: ``[False, True]`` for
        both. A metric that takes all layers in one block (``span``) is one-shot whatever the mode.
    preset : a published comparison, ``paper-table5`` or ``paper``: whatever is not given otherwise comes from there,
        ``layers`` (as a share of the model's), calibration, ``samples`` and ``eval`` too.
    samples : calibration windows, 128 without a preset.
    earlier : an interrupted comparison, as it was last handed to ``on_measured``: arms that are complete in it are not
        run again. Raises :class:`JournalError` if it is of another model, data or options; its arms and layers may
        differ.
    on_measured : called with all results so far whenever there are new ones.

    The other parameters are those of :func:`prunecomp.prune`. Raises a subclass of
    :class:`prunecomp.errors.PrunecompError` that says what to do.
    """
    started = time.perf_counter()
    published = find_preset(preset)
    grid = {"metrics": metrics, "compensations": compensations, "one_shot": one_shot, "parity": parity}
    chosen = choose_arms(published, **read_grid(**grid)) if arms is None else read_arms(arms, preset=preset, **grid)
    taken = PruneOptions.samples if samples is None else samples
    if published is not None:
        taken = published.samples if samples is None else samples
        calibration = published.calibration if calibration is None else calibration
        eval = list(published.texts) if eval is None else eval
    if calibration is None:
        raise OptionError("--calibration: give a text, or a --preset")
    sources = {} if eval is None else named_texts(eval)
    if not sources:
        raise OptionError("--eval: give at least one text to measure perplexity on")
    common = PruneOptions.of(
        layers=1, samples=taken, seqlen=seqlen, seed=seed, documents=documents,
        bos=bos, dtype=dtype, device=device, keep=keep,
        candidates=candidates, given=given, parity=next((arm.parity for arm in chosen if arm.parity is not None), None),
        attn=attn, compile=compile, backend=backend,
    )  # fmt: skip
    seqlen, seed = common.seqlen, common.seed
    counts = [] if layers is None else sorted(set(layer_numbers("--layers", layers)))
    check_arms(common, chosen)
    function("progress", progress)
    model_source = open_model(model, common, tokenizer, allow_pickle)
    if layers is None and published is not None:
        counts = published.layers(model_source.num_layers)
    if not counts:
        raise OptionError("--layers: say after how many removals to measure, as in 2,4,6, or give a --preset")
    check_read_once([calibration, *sources.values()])
    for arm in chosen:
        candidates_of_arm(common, arm, counts[-1], model_source.num_layers)  # too few is told before any work
    windows = calibration_windows(model_source, calibration, common.samples, seqlen, seed, documents, common.window_bos)
    if samples is not None:
        check_taken(windows, common.samples, None)
    texts = {
        name: evaluation_windows(model_source, source, seqlen, common.window_bos) for name, source in sources.items()
    }
    for some in (windows, *texts.values()):
        Workers.current(some.count)  # too few for the processes is told before any work
    plan = Plan(model_source, common, windows, texts, chosen, counts)
    placement = plan.place(device_memory, host_memory, disk)
    rounds = 1 if all(arm.one_shot for arm in chosen) else counts[-1]
    compiled = compiles(compile, model_source, windows, placement, rounds)
    before = Comparison(
        model=model_source.name,
        num_layers=model_source.num_layers,
        layers=counts,
        calibration=Text.of("calibration", windows),
        texts=[Text.of(name, some) for name, some in texts.items()],
        dense={},
        identity=plan.identity(placement, compiled),
        options={"preset": preset, "samples": common.samples, "seqlen": seqlen, "seed": seed, "device": device},
        versions={
            "prunecomp": version("prunecomp"),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "safetensors")},
        },
    )
    if earlier is not None and not isinstance(earlier, Comparison):
        raise OptionError("earlier: give the Comparison that on_measured was last called with")
    if earlier is not None:
        before = continued(before, earlier, chosen)
    left = [arm for arm in chosen if not before.complete(arm, counts)]
    if not left:
        return before

    def so_far(explorer: Explorer) -> Comparison:
        work = {one.arm: one for one in [*before.work, *explorer.work()]}
        measured = {(one.arm, one.layers): one for one in [*before.measurements, *explorer.measurements]}
        return replace(
            before,
            dense=explorer.dense,
            work=[work[arm] for arm in chosen if arm in work],
            measurements=[measured[arm, n] for arm in chosen for n in counts if (arm, n) in measured],
            window_forwards=before.window_forwards + explorer.cache.total.window_forwards,
            seconds=before.seconds + time.perf_counter() - started,
        )

    def tell(explorer: Explorer) -> None:
        if on_measured is not None:
            on_measured(so_far(explorer))

    explorer = plan.explorer(left, load(model_source, placement, compiled), placement, progress, tell)
    explorer.explore()
    return so_far(explorer)


def continued(now: Comparison, earlier: Comparison, arms: Sequence[Arm]) -> Comparison:
    """``now`` with the arms that ``earlier`` has measured completely.

    Raises :class:`JournalError` where it is of another model, data or options, naming the differences.
    """
    differing = differences(earlier.identity, now.identity)
    if differing:
        raise JournalError(
            "--resume: what is there is of another comparison: " + "; ".join(differing) + ". Give the same model, data "
            "and options, or another --out"
        )
    complete = {arm for arm in arms if earlier.complete(arm, now.layers)}
    return replace(
        now,
        dense=earlier.dense,
        measurements=[one for one in earlier.measurements if one.arm in complete and one.layers in now.layers],
        work=[one for one in earlier.work if one.arm in complete],
        window_forwards=earlier.window_forwards,
        seconds=earlier.seconds,
        sittings=earlier.sittings + (len(complete) < len(arms)),
    )
