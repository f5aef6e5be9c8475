"""A model source as a model that generates."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig

from prunecomp.data.tokens import Tokenizer
from prunecomp.engine.parallel import world_size
from prunecomp.engine.placement import Placement
from prunecomp.errors import OptionError
from prunecomp.evaluation.language import Language
from prunecomp.model.files import GENERATION
from prunecomp.model.source.base import ModelSource


def why_silent(model_source: ModelSource, placement: Placement) -> str | None:
    """Why a model cannot be one that generates, as far as is known before it is loaded."""
    if placement.group_size is not None:
        return "the model is streamed, and generation needs one that fits in memory: give more --device-memory"
    if world_size() > 1:
        return "several processes share the windows: run the profile in one"
    if not isinstance(model_source.tokenize, Tokenizer):
        return "the model has no tokenizer: give one"
    return None


def check_speaks(option: str, model_source: ModelSource, placement: Placement) -> None:
    """Raise :class:`OptionError` for an ``option`` that needs a model that generates, where :func:`why_silent` says why
    it cannot."""
    reason = why_silent(model_source, placement)
    if reason is not None:
        raise OptionError(f"{option}: {reason}; or leave it out")


def speaking(model_source: ModelSource, placement: Placement) -> Language:
    """:func:`language_of` where :func:`check_speaks` has nothing against it."""
    language = language_of(model_source, placement)
    assert isinstance(language, Language)
    return language


def language_of(model_source: ModelSource, placement: Placement) -> Language | str:
    """The model of a source, once it is loaded, as one that generates; or why it cannot."""
    reason = why_silent(model_source, placement)
    if reason is not None:
        return reason
    assert isinstance(model_source.tokenize, Tokenizer)
    tokenizer, model = model_source.tokenize.of_transformers, model_source.load().model
    stated = [getattr(model, "generation_config", None)]
    folder = Path(model_source.name) if model_source.base is None else Path(model_source.base)
    if (folder / GENERATION).is_file():
        stated.append(GenerationConfig.from_pretrained(folder))
    ends: dict[int, None] = {}
    for token in [getattr(tokenizer, "eos_token_id", None), *(getattr(one, "eos_token_id", None) for one in stated)]:
        ends.update(dict.fromkeys(token if isinstance(token, list) else [] if token is None else [token]))
    return Language(model, tokenizer, list(ends))
