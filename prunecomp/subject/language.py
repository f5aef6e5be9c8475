"""A subject as a model that generates."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig

from prunecomp.data.sources import Tokenizer
from prunecomp.engine.parallel import world_size
from prunecomp.engine.placement import Placement
from prunecomp.evaluation.language import Language
from prunecomp.subject.base import Subject

TOKENS = "generation_config.json"


def language_of(subject: Subject, placement: Placement) -> Language | str:
    """The model of a subject, once it is loaded, as one that generates; or why it cannot."""
    if placement.group_size is not None:
        return "the model is streamed, and generation needs one that fits in memory: give more --device-memory"
    if world_size() > 1:
        return "several processes share the windows: run the profile in one"
    if not isinstance(subject.tokenize, Tokenizer):
        return "the model has no tokenizer: give one"
    tokenizer, model = subject.tokenize.of_transformers, subject.load().model
    stated = [getattr(model, "generation_config", None)]
    folder = Path(subject.name) if subject.base is None else Path(subject.base)
    if (folder / TOKENS).is_file():
        stated.append(GenerationConfig.from_pretrained(folder))
    ends: dict[int, None] = {}
    for token in [getattr(tokenizer, "eos_token_id", None), *(getattr(one, "eos_token_id", None) for one in stated)]:
        ends.update(dict.fromkeys(token if isinstance(token, list) else [] if token is None else [token]))
    return Language(model, tokenizer, list(ends))
