"""The capability profile as a function."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prunecomp.api import place_run
from prunecomp.data.windows import Windows, choose_seqlen
from prunecomp.engine.progress import Progress, silent
from prunecomp.errors import OptionError
from prunecomp.evaluation.agreement import Standing
from prunecomp.evaluation.language import Language
from prunecomp.evaluation.profile import ITEMS, Named, Profile, capabilities
from prunecomp.inputs import evaluation_windows
from prunecomp.model.stack import LayerStack
from prunecomp.options import PruneOptions, open_model
from prunecomp.subject.language import language_of
from prunecomp.values import function, whole


def profile(
    model: Any,
    eval: Mapping[str, Any] | None = None,
    *,
    base: Any = None,
    items: int = ITEMS,
    seqlen: int | None = None,
    seed: int = 0,
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
) -> Profile:
    """What a model can do: perplexity on texts, chat prompts answered greedily, and probes made from ``seed``; beside
    ``base``, the dense model that it was made from, with agreement and paired intervals.

    Parameters
    ----------
    eval : sources of text by name, as :func:`prunecomp.evaluate` takes one.
    base : a folder, a hub id or a model object; without, ``model`` stands alone.
    items : problems of each probe.

    The other parameters are those of :func:`prunecomp.evaluate`. Generation and probes need a tokenizer and a model
    that fits in memory; without, :attr:`Profile.left_out` says so. Raises a subclass of
    :class:`prunecomp.errors.PrunecompError` that says what to do.
    """
    options = PruneOptions.of(layers=1, seqlen=seqlen, seed=seed, bos=bos, dtype=dtype, device=device, attn=attn)
    items = whole("items", items, 10, 10_000)
    function("progress", progress)
    subjects = [open_model(one, options, tokenizer, allow_pickle) for one in (base, model) if one is not None]
    texts = {
        name: evaluation_windows(subjects[0], source, options.seqlen, options.bos)
        for name, source in (eval or {}).items()
    }
    for subject in subjects[1:]:
        for name, source in (eval or {}).items():
            if evaluation_windows(subject, source, options.seqlen, options.bos).digest != texts[name].digest:
                raise OptionError(
                    f"base: its tokenizer reads {name} in another way than the model's; give the base model"
                )
    none = Windows(torch.zeros(1, choose_seqlen(options.seqlen, subjects[0].config), dtype=torch.int64), "none")
    some = max([none, *texts.values()], key=lambda windows: windows.num_tokens)
    standings, languages = [], {}
    reason = ""
    for subject in subjects:
        placement = place_run(subject, some, device_memory, host_memory, disk)
        decoder = subject.load(placement.group_size)
        standings.append(Standing(decoder, LayerStack.dense(decoder.num_layers), placement))
        language = language_of(subject, placement)
        if isinstance(language, Language):
            languages[decoder] = language
        else:
            reason = reason or language
    others = [Named("model", one) for one in standings[1:]]
    return capabilities(
        standings[0], others, texts, reason or languages, items=items, seed=options.seed, progress=progress
    )
