"""What a model writes when it is left to itself: where it leaves the dense model's words, whether it turns in circles,
and whether it comes to an end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from prunecomp.evaluation.language import Language

REPEATED = 4
"""Tokens of the pieces that are looked for twice."""


@dataclass(frozen=True)
class Written:
    """An answer to a prompt."""

    prompt: str
    text: str
    tokens: tuple[int, ...]
    ended: bool
    """By an end of text, and not by the limit."""

    @property
    def repetition(self) -> float:
        """Share of its 4-grams that stand in it before (seq-rep-4; Welleck et al., arXiv 1908.04319, eq. 10)."""
        pieces = [self.tokens[i : i + REPEATED] for i in range(len(self.tokens) - REPEATED + 1)]
        return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0

    def same_as(self, other: Written) -> int:
        """Tokens up to the first that differs."""
        pairs = zip(self.tokens, other.tokens, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass(frozen=True)
class Generation:
    """Over all prompts."""

    tokens: float
    """Mean length of an answer."""
    repetition: float
    """Mean share of repeated 4-grams."""
    ended: float
    """Share of answers that ended by themselves."""
    until_different: float | None
    """Mean number of tokens until the answer differs from the dense model's first; None for the dense model."""
    identical: float | None
    """Share of answers that never do."""


def write(language: Language, prompts: Sequence[str], most: int) -> list[Written]:
    """Greedy answers of at most ``most`` tokens."""
    answers = language.generate([language.chat(prompt) for prompt in prompts], most)
    return [
        Written(prompt, language.decode(one), tuple(one), bool(one) and one[-1] in language.ends)
        for prompt, one in zip(prompts, answers, strict=True)
    ]


def summed_up(written: Sequence[Written], dense: Sequence[Written] | None = None) -> Generation:
    count = len(written)
    same = None if dense is None else [one.same_as(other) for one, other in zip(written, dense, strict=True)]
    return Generation(
        tokens=sum(len(one.tokens) for one in written) / count,
        repetition=sum(one.repetition for one in written) / count,
        ended=sum(one.ended for one in written) / count,
        until_different=None if same is None else sum(same) / count,
        identical=None
        if dense is None
        else sum(one.tokens == other.tokens for one, other in zip(written, dense, strict=True)) / count,
    )
