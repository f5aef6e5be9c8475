"""A model source as a model that generates."""

from __future__ import annotations

from typing import Any

from prunecomp.data.tokens import Tokenizer
from prunecomp.engine.parallel import world_size
from prunecomp.engine.placement import Placement
from prunecomp.errors import CheckpointError, OptionError, PrunecompError
from prunecomp.evaluation.language import Language
from prunecomp.evaluation.profile import why_unasked
from prunecomp.model.source.base import ModelSource


def why_silent(model_source: ModelSource, placement: Placement, probes: tuple[int, int] | None = None) -> str | None:
    """Why a model cannot be asked to generate, as far as is known before it is loaded; and with ``probes``, so many
    problems drawn from a seed, to solve them."""
    if placement.group_size is not None:
        return "the model is streamed, and generation needs one that fits in memory: give more --device-memory"
    if world_size() > 1:
        return "several processes share the windows: run the profile in one"
    if not isinstance(model_source.tokenize, Tokenizer):
        return "the model has no tokenizer: give one"
    try:
        language = _language(model_source, model_source.described.model)
    except PrunecompError as error:  # of a file that nothing else may need
        return str(error)
    rows = None if probes is None else model_source.position_rows  # lm-eval cuts what it asks
    return why_unasked(language, model_source.vocab_size, rows, *(probes or (10, 0)))


def check_speaks(
    option: str, model_source: ModelSource, placement: Placement, probes: tuple[int, int] | None = None
) -> None:
    """Raise :class:`OptionError` for an ``option`` that needs a model that generates, where :func:`why_silent` says why
    it cannot."""
    reason = why_silent(model_source, placement, probes)
    if reason is not None:
        raise OptionError(f"{option}: {reason}; or leave it out")


def language_of(model_source: ModelSource) -> Language:
    """The model of a source, which is loaded for it, as one that generates; :func:`why_silent` has nothing against
    it."""
    return _language(model_source, model_source.load().model)


def _language(model_source: ModelSource, model: Any) -> Language:
    assert isinstance(model_source.tokenize, Tokenizer)
    tokenizer = model_source.tokenize.of_transformers
    ends: dict[Any, None] = {}
    for stated in (tokenizer, getattr(model, "generation_config", None), model_source.generation()):
        token = getattr(stated, "eos_token_id", None)
        ends.update(dict.fromkeys(token if isinstance(token, list) else [] if token is None else [token]))
    stray = next((token for token in ends if not isinstance(token, int)), None)
    if stray is not None:
        raise CheckpointError(f"eos_token_id is {stray!r}; token ids belong there")
    # One that the model has no row for is never written.
    return Language(model, tokenizer, [token for token in ends if 0 <= token < model_source.vocab_size])
