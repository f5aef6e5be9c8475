"""Texts and conversations as token ids, and token ids held to a vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from prunecomp.data.records import Chat
from prunecomp.errors import DataError, PrunecompError

Tokenize = Callable[[str], list[int]]
UNDESCRIBED = "the tokenizer gives a token the id {}"
TODAY = "26 Jul 2024"
"""For chat templates that state a date: with that of the day, windows would be others tomorrow."""


@contextmanager
def telling() -> Iterator[None]:
    """Raise :class:`DataError` for whatever a tokenizer stumbles over: they have errors of many kinds, of other
    languages too."""
    try:
        yield
    except PrunecompError:
        raise
    except Exception as error:
        raise DataError(f"the tokenizer does not take it ({type(error).__name__}: {error})") from error


class Tokenizer:
    """A tokenizer of transformers, as texts are read with it: loaded for the first one, for token ids need none."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    @cached_property
    def _tokenizer(self) -> Any:
        return self._load()

    def __call__(self, text: str) -> list[int]:
        # One call on the whole text, as the official code makes it: a BOS token, if any, stands once at the start.
        with telling():
            ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return ids

    def chat(self, chat: Chat) -> list[int]:
        """A conversation as the tokenizer's chat template has it. Raises :class:`DataError` where there is none."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise DataError(
                "it holds conversations, and the tokenizer has no chat template to write them with: give a model that "
                "was trained on conversations, or a field of plain text, as in FILE:FIELD"
            )
        with telling():
            ids: list[int] = self._tokenizer.apply_chat_template(chat.messages, return_dict=False, date_string=TODAY)
        return ids

    @property
    def of_transformers(self) -> Any:
        """The tokenizer itself, for what asks more of it than to read a text."""
        return self._tokenizer

    @property
    def bos(self) -> int | None:
        """The token for the beginning of a text, if there is one."""
        token = getattr(self._tokenizer, "bos_token_id", None)
        return None if token is None else int(token)

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with it without being asked to."""
        return self.bos is not None and self("a")[:1] == [self.bos]

    def describe(self, token: int) -> str:
        """How many tokens there are, and what the one of this id is."""
        try:
            spelt = self._tokenizer.convert_ids_to_tokens(token)
            return f"the tokenizer, of {len(self._tokenizer)} tokens, gives {spelt!r} the id {token}"
        except Exception:  # only to say more in an error; what is no tokenizer of transformers may not know
            return UNDESCRIBED.format(token)


def token_ids(text: str | Chat, name: str, tokenize: Tokenize | None, vocab_size: int | None) -> np.ndarray:
    """``text`` as tokens, int64 [T]. Raises :class:`DataError`."""
    if tokenize is None or (isinstance(text, Chat) and not isinstance(tokenize, Tokenizer)):
        what, remedy = ("text", ", or give token ids as .npy") if isinstance(text, str) else ("conversations", "")
        raise DataError(f"{name} is {what}, and the model has no tokenizer: add one{remedy}")
    try:
        with telling():  # what is no tokenizer of transformers too
            ids = tokenize.chat(text) if isinstance(text, Chat) else tokenize(text)  # type: ignore[attr-defined]
            tokens = np.asarray(ids, dtype=np.int64)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error.__cause__
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)] if vocab_size is not None else tokens[:0]
    if len(outside):
        token = int(outside[0])
        given = tokenize.describe(token) if isinstance(tokenize, Tokenizer) else UNDESCRIBED.format(token)
        raise DataError(
            f"{name}: {given}, and the model has rows for {vocab_size} ids, from 0 on: give the tokenizer that the "
            "model was trained with, or a model whose embedding was resized to it"
        )
    return tokens


def check_tokens(tokens: np.ndarray, name: str, vocab_size: int) -> np.ndarray:
    """``tokens`` as int64. Raises :class:`DataError` unless they are ids [T] or [N, S]."""
    if not tokens.size:
        raise DataError(f"{name}: an array of shape {tokens.shape} holds no token ids, nothing to run")
    if tokens.ndim not in (1, 2) or tokens.dtype.kind not in "iu":
        raise DataError(
            f"{name}: token ids must be integers of shape [T] or [N, S], not {tokens.dtype} of shape {tokens.shape}"
        )
    lowest = 0 if tokens.ndim == 1 else tokens.min(initial=0)  # negative ids in rows are padding
    if tokens.min() < lowest or tokens.max() >= vocab_size:
        raise DataError(
            f"{name}: token ids run from {tokens.min()} to {tokens.max()}, the vocabulary from 0 to {vocab_size - 1}"
        )
    return tokens.astype(np.int64)
