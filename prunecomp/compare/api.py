"""The comparison as a function."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from typing_extensions import Unpack

from prunecomp.compare.arms import Arm, arms_of, find_preset, named_texts
from prunecomp.compare.plan import Plan, candidates_of_arm, check_arms, replacing
from prunecomp.compare.results import Comparison, Text
from prunecomp.compare.tree import Explorer
from prunecomp.data.sources import check_read_once
from prunecomp.engine.progress import Within
from prunecomp.engine.usual import usual
from prunecomp.errors import JournalError, OptionError
from prunecomp.names import VERSION
from prunecomp.options import CompareOptions
from prunecomp.options.keywords import CompareKeywords
from prunecomp.pruning.journal import differences
from prunecomp.pruning.result import versions
from prunecomp.pruning.session import Session


@usual()
def compare(
    model: Any, layers: Iterable[int] | str | None = None, calibration: Any = None, **options: Unpack[CompareKeywords]
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
    metrics, compensations, repairs, ridges, one_shot, both_ways, parity : a grid of all of them. ``one_shot`` lists
        modes, and ``both_ways`` is ``[False, True]``. A metric that takes all layers in one block (``span``) is
        one-shot whatever the mode. A repair is fitted after every number in ``layers`` to what the loop left there; the
        loop goes on without it. Without ``compensations`` and ``repairs`` there are three ways: nothing, ``scale``, and
        what :func:`prunecomp.prune` does by default, ``none`` with the repair ``auto``.
    preset : a published comparison, ``paper-table5`` or ``paper``: whatever is not given otherwise comes from there,
        ``layers`` (the paper's for its models, else a share), calibration, ``samples`` and ``eval`` too.
    earlier : an interrupted comparison, as it was last handed to ``on_measured``: arms that are complete in it are not
        run again. Raises :class:`JournalError` if it is of another model, data or options; its arms and layers may
        differ.
    on_measured : called with all results so far whenever there are new ones.

    The other options are those of :func:`prunecomp.prune`. Raises a subclass of
    :class:`prunecomp.errors.PrunecompError` that says what to do.

    >>> tokens = torch.arange(64).view(2, 32)  # [N, S]
    >>> compared = prunecomp.compare(
    ...     "examples/reference_model", [1, 2], tokens, eval={"own": tokens}, metrics="bi,last", compensations="none",
    ...     dtype="float32")
    >>> [(one.arm.metric, one.layers) for one in compared.measurements]
    [('bi', 1), ('bi', 2), ('last', 1), ('last', 2)]
    """
    started = time.perf_counter()
    given: dict[str, Any] = {"layers": layers, "calibration": calibration, **options}
    for name in ("calibration", "samples", "eval"):
        if given.get(name) is None:  # as the preset has it
            given.pop(name, None)
    published = find_preset(given.get("preset"))
    asked = CompareOptions.of("compare", {**({} if published is None else published.defaults()), **given})
    chosen = arms_of(asked, published)
    sources = {} if asked.eval is None else named_texts(asked.eval)
    if not sources:
        raise OptionError("--eval: give at least one text to measure perplexity on")
    where = Within(asked.progress)
    common = replace(asked, progress=where).common(next((arm.parity for arm in chosen if arm.parity is not None), None))
    check_arms(common, chosen)
    session = Session(model, common)
    folds = session.tasks is not None  # which is told of before the work
    model_source = session.model_source
    counts = asked.layers or ([] if published is None else published.layers(model_source.config))
    if not counts:
        raise OptionError("--layers: say after how many removals to measure, as in 2,4,6, or give a --preset")
    check_read_once([asked.calibration, *sources.values()])
    for arm in chosen:
        candidates_of_arm(common, arm, counts[-1], model_source.num_layers)  # too few is told before any work
    new = {arm: replacing(session, arm, counts[-1]) for arm in chosen if folds or arm.repair != "none"}
    replaces = {arm: some for arm, some in new.items() if arm.repair != "none"}
    windows = session.calibration(as_asked=["samples"] if "samples" in given else [])
    texts = {name: session.evaluation(text) for name, text in sources.items()}
    plan = Plan(session, windows, texts, chosen, counts, replaces)
    placement = plan.place()
    compiled = session.compiles(windows, placement, 1 if all(arm.one_shot for arm in chosen) else counts[-1])
    before = Comparison(
        model=model_source.name,
        num_layers=model_source.num_layers,
        layers=counts,
        calibration=Text.of("calibration", windows),
        texts=[Text.of(name, some) for name, some in plan.texts.items()],
        dense={},
        identity=plan.identity(placement, compiled),
        options={
            "preset": asked.preset,
            **{name: getattr(common, name) for name in ("samples", "seqlen", "seed", "device")},
        },
        versions={"prunecomp": VERSION, **versions()},
    )
    earlier, on_measured = asked.earlier, asked.on_measured
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
            dense_losses=explorer.dense_losses,
            dense_tasks=explorer.dense_tasks,
            work=[work[arm] for arm in chosen if arm in work],
            measurements=[measured[arm, n] for arm in chosen for n in counts if (arm, n) in measured],
            window_forwards=before.window_forwards + explorer.cache.total.window_forwards,
            seconds=before.seconds + time.perf_counter() - started,
        )

    def tell(explorer: Explorer) -> None:
        if on_measured is not None:
            on_measured(so_far(explorer))

    explorer = plan.explorer(left, session.load(placement, compiled=compiled), placement, tell)
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
        dense_losses=earlier.dense_losses,
        dense_tasks=earlier.dense_tasks,
        measurements=[one for one in earlier.measurements if one.arm in complete and one.layers in now.layers],
        work=[one for one in earlier.work if one.arm in complete],
        window_forwards=earlier.window_forwards,
        seconds=earlier.seconds,
        sittings=earlier.sittings + (len(complete) < len(arms)),
    )
