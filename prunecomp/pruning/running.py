"""A run from beginning to end: one loop, and where it stops a model each, repaired and judged."""

from __future__ import annotations

import itertools
import time
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prunecomp.compensation import COMPENSATIONS
from prunecomp.data.sources import check_read_once
from prunecomp.data.windows import Windows
from prunecomp.engine.latency import Latency, measure_latency
from prunecomp.engine.parallel import from_leader, rank, world_size
from prunecomp.engine.placement import Placement, workers_of
from prunecomp.engine.progress import Advance, Progress
from prunecomp.engine.run import WORK_UNIT
from prunecomp.errors import OptionError, PrunecompWarning
from prunecomp.evaluation.agreement import Standing, called
from prunecomp.metrics import METRICS
from prunecomp.model.stack import LayerStack, Overlay
from prunecomp.options import PruneOptions
from prunecomp.options.aims import Aim
from prunecomp.pruning.abilities import Abilities
from prunecomp.pruning.curve import Curve
from prunecomp.pruning.gates import GATES, Gates, Look, Looks, shared
from prunecomp.pruning.journal import Journal
from prunecomp.pruning.judging import judged
from prunecomp.pruning.language import check_speaks, why_silent
from prunecomp.pruning.result import Pass, PruneResult, RoundRecord
from prunecomp.pruning.rounds import Stops, run_rounds
from prunecomp.pruning.session import Session, may_replace
from prunecomp.pruning.stages import round_of, whole_of
from prunecomp.repair import RIDGE, Outcome, repair


class Meter:
    """A :data:`Progress` that knows what stages took, by what stands before the colon."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps: dict[str, int] = defaultdict(int)
        """Of layers x windows."""
        self.passing: dict[str, float] = defaultdict(float)
        """Those of the seconds that these took."""

    @contextmanager
    def __call__(self, description: str, total: int, unit: str) -> Iterator[Advance]:
        started, whose = time.perf_counter(), description.partition(":")[0]
        self.steps[whose] += total * (unit == WORK_UNIT)
        with self._progress(description, total, unit) as advance:
            yield advance
        spent = time.perf_counter() - started
        self.seconds[whose] += spent
        self.passing[whose] += spent * (unit == WORK_UNIT)

    def passes(
        self, windows: Windows, num_layers: int, device: torch.device, counted: Mapping[str, float]
    ) -> dict[str, Pass]:
        """Of its stages those that ran layers over ``windows``; passes of those that are told in other steps were
        ``counted``."""
        share = workers_of(windows.count, windows.seqlen, device).share
        forwards = {**{whose: steps / share for whose, steps in self.steps.items()}, **counted}
        seconds = {**self.passing, **{whose: self.seconds[whose] for whose in counted}}
        tokens = windows.num_tokens / num_layers
        return {
            whose: Pass(seconds[whose], many, many * tokens / seconds[whose])
            for whose, many in forwards.items()
            if many and seconds[whose] > 0
        }


def run(model: Any, asked: PruneOptions) -> Curve:
    """Prune ``model`` as ``asked``: a result for each number of layers in ``asked.curve``, or for ``asked.layers``.

    Each is what a run to that number alone gives, for the loop to the largest passes through it; ``--compile auto`` is
    decided for the whole.
    """
    started = time.perf_counter()
    asked.check(METRICS, COMPENSATIONS)
    session = Session(model, asked)
    asked, tasks = session.options, session.tasks
    wanted = asked.curve or [asked.layers]
    model_source, candidates = session.model_source, session.candidates()
    replaces = may_replace(model_source, asked, candidates)
    check_read_once([asked.calibration, asked.eval])
    windows = session.calibration()
    eval_windows = None if asked.eval is None else session.evaluation(asked.eval)
    if asked.on_text:
        check_apart(asked.on_text[0], windows, eval_windows)
    placement = session.place(windows.count, windows.seqlen, session.demand())
    probes = asked.items, asked.seed
    silent = why_silent(model_source, placement, probes) if asked.profile else None
    if silent is not None:
        warnings.warn(f"--profile: no generation and no probes: {silent}", PrunecompWarning, stacklevel=3)
    if tasks is not None:  # which are asked with the probes
        check_speaks(f"--tasks {asked.tasks}", model_source, placement, probes)
    elif asked.of_tasks:
        check_speaks(f"--target {asked.of_tasks[0]}", model_source, placement, probes)
    if session.latency is not None and placement.group_size is not None:
        raise OptionError("--target latency: the model is streamed, and layers are measured where all fit in memory: "
                          "give more --device-memory, or another goal")  # fmt: skip
    compiled = session.compiles(windows, placement, 1 if asked.one_shot else asked.layers)
    half: Placement | None = placement
    looking: Placement | None = None
    if asked.on_text and eval_windows is not None:
        half, looking = shared(placement, eval_windows.num_tokens / windows.num_tokens)
    size = asked.block_size(METRICS)
    with open_journal(session, windows, placement, compiled, candidates) as journal, ExitStack() as held:
        clock = Meter(asked.progress)
        if session.latency is not None:
            session.take(from_leader(partial(timed, session, windows, placement, journal, clock)))
            asked, wanted = session.options, [session.options.layers]
        count = -(-asked.layers // size)
        whole = whole_of(asked, model_source.num_layers, windows, eval_windows, placement, count)
        whole.seconds.update(clock.seconds)
        held.enter_context(whole.open())
        whole.begin("loading")
        meter = Meter(whole)
        first = asked.given[: asked.layers] if asked.metric == "given" else [min(candidates)]
        pruner = session.pruner(
            windows, half or placement, compiled=compiled, candidates=candidates, moving=first, progress=meter
        )
        done = () if journal is None else tuple(journal.rounds)
        numbers = itertools.count(len(done) + 1)
        judged_forwards = {"judging": 0.0}
        whole.begin(round_of(next(numbers), count))

        def on_round(record: RoundRecord, overlays: Mapping[int, Overlay]) -> None:
            if journal is not None:
                journal.append(record, overlays)
            whole.begin(round_of(next(numbers), count))

        def fit(stack: LayerStack) -> tuple[LayerStack, Outcome | None]:
            if asked.repair == "none":
                return stack, None
            fitted, outcome = repair(
                pruner.decoder, windows, placement, stack, asked.repair, asked.ridge or RIDGE,
                replaces=replaces, progress=meter,
            )  # fmt: skip
            judged_forwards["judging"] += outcome.judged_layer_forwards
            return fitted, outcome

        stops, gates, abilities = Stops(pruner, wanted, size), None, None
        if asked.target is not None:
            dense = Standing(pruner.decoder, LayerStack.dense(model_source.num_layers), looking or placement)
            looks: list[Look] = []
            with whole.aside(GATES):
                if asked.on_text and eval_windows is not None:
                    looks.append(Looks(eval_windows, dense, whole, looking is not None))
                if asked.of_tasks:
                    abilities = Abilities.of(asked, model_source, dense, whole)
                    looks.append(abilities)
            # Probes are answered by the model as it would be written, beside a repair: no room is set apart for that.
            short = half is None or not asked.on_text
            gates = Gates(pruner, model_source, asked.target, fit, looks, session.latency, short, whole)
        run_rounds(
            pruner, asked.layers, candidates, asked.one_shot, done=done,
            overlays=None if journal is None else journal.overlays, on_round=on_round, until=gates or stops,
        )  # fmt: skip
        looped = time.perf_counter()
        passed, target = stops.passed, None
        if gates is not None:
            last, target = gates.reached({} if abilities is None else abilities.dense)
            passed, wanted = [last], [len(last.stack.removed)]
            whole.begin("repairing")
        pruner.release()
        repaired = [stop.repaired or fit(stop.stack) for stop in passed]
        stacks, outcomes = [stack for stack, _ in repaired], [outcome for _, outcome in repaired]
        whole.begin("evaluating")
        judging = Meter(whole)
        found = judged(model_source, stacks, placement, asked, eval_windows, tasks, silent, judging)
    ended = time.perf_counter()
    others = len(stacks)
    mine = [
        (0.0 if outcome is None else outcome.seconds) + judging.seconds[called(row, others)]
        for row, outcome in enumerate(outcomes, start=1)
    ]
    passes = meter.passes(windows, model_source.num_layers, model_source.device, judged_forwards)
    if eval_windows is not None:
        passes |= judging.passes(eval_windows, model_source.num_layers, model_source.device, {})
    results = [
        PruneResult(
            options=replace(asked, layers=layers, curve=None, target=None),
            model_source=model_source,
            stack=stack,
            rounds=stop.rounds,
            repair=outcome,
            target=target,
            calibration=windows,
            evaluation=eval_windows,
            placement=placement,
            compiled=compiled,
            layer_forwards=stop.layer_forwards + (0 if outcome is None else outcome.layer_forwards),
            perplexity={one: text.perplexity.value for one, text in zip(("dense", "pruned"), quality, strict=True)}
            if quality
            else None,
            quality=quality,
            profile=profile,
            # What others took is not counted.
            seconds=ended - started - (looped - stop.at) - (sum(mine) - own),
            stages=whole.seconds if others == 1 else {},
            passes=passes if others == 1 else {},
        )
        for layers, stop, stack, outcome, (quality, profile), own in zip(
            wanted, passed, stacks, outcomes, found, mine, strict=True
        )
    ]
    share = world_size() / (1 if eval_windows is None else eval_windows.count)
    return Curve(
        results,
        layer_forwards=pruner.layer_forwards + sum(0 if one is None else one.layer_forwards for one in outcomes),
        evaluation_forwards={whose: steps * share for whose, steps in judging.steps.items()},
        seconds=ended - started,
        on_saved=None if journal is None else journal.remove,
    )


def timed(session: Session, windows: Windows, placement: Placement, journal: Journal | None, clock: Meter) -> Latency:
    """What the layers take, as the journal has it, or measured; the ``clock`` sees what that takes."""
    latency = None if journal is None else journal.latency
    if latency is None:
        began = time.perf_counter()
        decoder = session.load(placement)
        clock.seconds["loading"] += time.perf_counter() - began
        latency = measure_latency(decoder, windows.tokens[0], clock)
        if journal is not None:
            journal.time(latency)
    return latency


def check_apart(limit: Aim, calibration: Windows, evaluation: Windows | None) -> None:
    """Raise :class:`OptionError` unless there is a text to hold a model to its limits on, and it is another one."""
    if evaluation is None:
        raise OptionError(f"--target {limit}: is measured on a text: give one by --eval, not that of --calibration")
    sources = {calibration.source, *calibration.kind_names}
    same = evaluation.digest == calibration.digest or (
        Path(evaluation.source).exists() and bool(sources & {evaluation.source, *evaluation.kind_names})
    )
    if same:
        raise OptionError(
            f"--target {limit}: --eval is what is calibrated on, and a model would be judged on what it was fitted to; "
            "give another text"
        )


@contextmanager
def open_journal(
    session: Session, windows: Windows, placement: Placement, compiled: bool, candidates: Collection[int]
) -> Iterator[Journal | None]:
    """The journal of a run, bound to all that its choices depend on, and to this run while it lasts."""
    file, options = session.options.journal, session.options
    if file is None:
        yield None
        return
    # How many layers go at most is a matter of the target, and another one goes on from there.
    aimed = options.target is not None
    most = len(candidates) if aimed else options.layers
    left_out = ("fold", "device", *(["layers"] if aimed else []))
    identity = session.identity(windows, placement, compiled, left_out=left_out)
    with ExitStack() as held:

        def opened() -> Journal:
            held.enter_context(Journal.claimed(file))
            journal = Journal.open(file, identity, resume=options.resume)
            journal.check(session.model_source.num_layers, candidates, most)
            return journal

        # Read in one place: another machine may not see the file, or not its last state.
        journal = from_leader(opened)
        yield journal if rank() == 0 else journal.followed(identity)
