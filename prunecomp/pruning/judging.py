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
    stack: LayerStack,
    placement: Placement,
    options: PruneOptions,
    windows: Windows | None,
    tasks: Tasks | None,
    progress: Progress,
) -> tuple[list[TextQuality], Profile | None]:
    """The dense model's and the pruned one's quality on the evaluation ``windows``, none where there are none; and, if
    the options ask for it, their profile."""
    decoder = model_source.load(placement.group_size)
    dense = Standing(decoder, LayerStack.dense(decoder.num_layers), placement)
    pruned = replace(dense, stack=stack)
    if not options.profile and tasks is None:
        return ([] if windows is None else on_text(windows, dense, [pruned], progress)), None
    language = language_of(model_source, placement)
    found = capabilities(
        dense, [Named("pruned", pruned, options.fold)], {} if windows is None else {"eval": windows},
        language if isinstance(language, str) else {decoder: language}, items=options.items,
        tasks=tasks, seed=options.seed, progress=progress,
    )  # fmt: skip
    return [model.texts["eval"] for model in found.models if windows is not None], found


def perplexities(quality: Sequence[TextQuality]) -> dict[str, float] | None:
    """By name; None where there was no text."""
    if not quality:
        return None
    return {name: one.perplexity.value for name, one in zip(("dense", "pruned"), quality, strict=True)}
