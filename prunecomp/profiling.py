"""The capability profile as a function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from typing_extensions import Unpack

from prunecomp.data.windows import Windows, choose_seqlen
from prunecomp.engine.usual import usual
from prunecomp.errors import OptionError
from prunecomp.evaluation.agreement import Standing
from prunecomp.evaluation.profile import Named, Profile, capabilities
from prunecomp.model.stack import LayerStack
from prunecomp.options import PruneOptions
from prunecomp.options.keywords import ProfileKeywords
from prunecomp.pruning.language import language_of, why_silent
from prunecomp.pruning.session import Session


@usual()
def profile(model: Any, eval: Mapping[str, Any] | None = None, **options: Unpack[ProfileKeywords]) -> Profile:
    """What a model can do: perplexity on texts, chat prompts answered greedily, and probes made from ``seed``; beside
    ``base``, the dense model that it was made from, with agreement and paired intervals.

    Parameters
    ----------
    eval : sources of text by name, as :func:`prunecomp.evaluate` takes one.
    base : a folder, a hub id or a model object; without, ``model`` stands alone.
    items : problems of each probe.
    tasks : names of lm-eval's tasks or YAML files, with commas between; ``fewshot`` and ``limit`` are for them.

    The other parameters are those of :func:`prunecomp.evaluate`. Generation and probes need a tokenizer and a model
    that fits in memory; without, :attr:`Profile.left_out` says so. Raises a subclass of
    :class:`prunecomp.errors.PrunecompError` that says what to do.

    >>> tokens = torch.arange(64).view(2, 32)  # [N, S]
    >>> found = prunecomp.profile("examples/reference_model", {"own": tokens}, items=10, dtype="float32")
    >>> found.models[0].texts["own"].windows
    2
    """
    asked = PruneOptions.of("profile", options)
    if not isinstance(eval, Mapping | None):
        raise OptionError("eval: give the sources of text by name, as in {'wiki': 'wiki.txt'}")
    beside = [] if asked.base is None else [Session(asked.base, replace(asked, revision=None))]
    sessions = [*beside, Session(model, asked)]
    tasks = sessions[0].tasks  # told of before the work
    texts = {name: sessions[0].evaluation(source) for name, source in (eval or {}).items()}
    for session in sessions[1:]:
        for name, source in (eval or {}).items():
            if session.evaluation(source).digest != texts[name].digest:
                raise OptionError(
                    f"base: its tokenizer reads {name} in another way than the model's; give the base model"
                )
    none = Windows(
        torch.zeros(1, choose_seqlen(asked.seqlen, sessions[0].model_source.config), dtype=torch.int64), "none"
    )
    some = max([none, *texts.values()], key=lambda windows: windows.num_tokens)
    standings, languages = [], {}
    reason: str | None = None
    for session in sessions:
        placement = session.place(some.count, some.seqlen)
        decoder = session.load(placement)
        standings.append(Standing(decoder, LayerStack.dense(decoder.num_layers), placement))
        reason = reason or why_silent(session.model_source, placement, (asked.items, asked.seed))
        if reason is None:
            languages[decoder] = language_of(session.model_source)
    others = [Named("model", one) for one in standings[1:]]
    return capabilities(
        standings[0],
        others,
        texts,
        reason or languages,
        items=asked.items,
        tasks=tasks,
        seed=asked.seed,
        progress=asked.progress,
    )
