"""The verdict on a pruned model: its text, and what it can still do, beside the dense one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prunecomp.data.windows import Windows
from prunecomp.engine.placement import Placement
from prunecomp.engine.progress import Progress
from prunecomp.evaluation.agreement import Standing, TextQuality, on_text
from prunecomp.evaluation.profile import Named, Profile, capabilities
from prunecomp.evaluation.tasks import Tasks
from prunecomp.model.source import ModelSource
from prunecomp.model.stack import LayerStack
from prunecomp.options import PruneOptions
from prunecomp.pruning.language import language_of


def judged(
    model_source: ModelSource,
    stacks: Sequence[LayerStack],
    placement: Placement,
    options: PruneOptions,
    windows: Windows | None,
    tasks: Tasks | None,
    silent: str | None,
    progress: Progress,
) -> list[tuple[list[TextQuality], Profile | None]]:
    """For each pruned model the dense one's and its own quality on the evaluation ``windows``, none where there are
    none; and, if the options ask for it, the profile of both, or why they are ``silent``. The dense model is looked at
    once."""
    decoder = model_source.load(placement.group_size)
    dense = Standing(decoder, LayerStack.dense(decoder.num_layers), placement)
    pruned = [replace(dense, stack=stack) for stack in stacks]
    if not options.profile and tasks is None:
        first, *others = [None] * (1 + len(pruned)) if windows is None else on_text(windows, dense, pruned, progress)
        return [([] if first is None or one is None else [first, one], None) for one in others]
    found = capabilities(
        dense, [Named("pruned", one, options.fold) for one in pruned], {} if windows is None else {"eval": windows},
        silent or {decoder: language_of(model_source)}, items=options.items,
        tasks=tasks, seed=options.seed, progress=progress,
    )  # fmt: skip
    profiles = [replace(found, models=[found.models[0], model]) for model in found.models[1:]]
    return [([model.texts["eval"] for model in one.models if windows is not None], one) for one in profiles]
