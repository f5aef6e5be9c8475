"""Probes: what a model can still do, asked as recognition and as production.

Recognition is which of four answers the model finds likeliest, production is whether it writes the right one itself.
Removing layers spares the first long after the second has gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, fsum, lgamma, log, log1p

from prunecomp.evaluation.items import PRODUCTION, RECOGNITION, Probe
from prunecomp.evaluation.language import Language
from prunecomp.metrics.bootstrap import Interval, paired_difference

SIGNIFICANT = 0.05
BEYOND = 4
"""Tokens that a model may write more than the longest answer has."""


@dataclass(frozen=True)
class Answers:
    """Which problems of a probe a model solved, asked in one way."""

    probe: str
    way: str
    hits: tuple[bool, ...]
    guess: float
    """The share that somebody would solve who knows nothing of the problems: one of four, or always the most frequent
    answer."""

    @property
    def score(self) -> float:
        return sum(self.hits) / len(self.hits)

    @property
    def beyond_chance(self) -> bool:
        """Whether guessing would have come so far with a probability below :data:`SIGNIFICANT` (exact binomial)."""
        n, p, hits = len(self.hits), self.guess, sum(self.hits)
        if p in (0.0, 1.0):
            return p == 0 and hits > 0
        chances = (
            exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p))
            for k in range(hits, n + 1)
        )
        return fsum(chances) < SIGNIFICANT


@dataclass(frozen=True)
class ProbeScore:
    """A pruned model's answers beside the dense model's."""

    probe: str
    way: str
    dense: float
    score: float
    difference: Interval
    """Of the score less the dense one, over the same problems."""


def answer(language: Language, probe: Probe) -> list[Answers]:
    """Both ways."""
    return [asked(language, probe, way) for way in (RECOGNITION, PRODUCTION)]


def asked(language: Language, probe: Probe, way: str) -> Answers:
    """One of them."""
    return (_recognised if way == RECOGNITION else _produced)(language, probe)


def together(name: str, each: Sequence[Answers]) -> Answers:
    """Of several probes, asked in one way, as of one. The guess is their mean: beyond what it gives, the chance of so
    many hits is never less than with guesses that differ (Hoeffding 1956, doi 10.1214/aoms/1177728178)."""
    hits = tuple(hit for one in each for hit in one.hits)
    return Answers(name, each[0].way, hits, sum(one.guess * len(one.hits) for one in each) / len(hits))


def _recognised(language: Language, probe: Probe) -> Answers:
    contexts, choices = [], []
    for item in probe.items:
        pairs = [language.encode_pair(probe.examples + item.question, one) for one in (item.answer, *item.wrong)]
        contexts.append(pairs[0][0])
        choices.append([continuation for _, continuation in pairs])
    found = language.likelihoods(contexts, choices)
    hits = tuple(all(right.log > one.log for one in wrong) for right, *wrong in found)
    return Answers(probe.name, RECOGNITION, hits, 1 / 4)


def _produced(language: Language, probe: Probe) -> Answers:
    prompts = [language.encode(probe.examples + item.question) for item in probe.items]
    longest = max(len(language.encode(item.answer)) for item in probe.items)
    written = language.generate(prompts, longest + BEYOND, until="\n")
    lines = [language.decode(answer).partition("\n")[0].strip() for answer in written]
    hits = tuple(probe.solves(item, line) for item, line in zip(probe.items, lines, strict=True))
    commonest = Counter(item.answer for item in probe.items).most_common(1)[0][1]
    return Answers(probe.name, PRODUCTION, hits, commonest / len(probe.items))


def beside_dense(dense: Sequence[Answers], other: Sequence[Answers], seed: int) -> list[ProbeScore]:
    """Scores of the probes at which the dense model is beyond chance."""
    return [
        ProbeScore(one.probe, one.way, one.score, two.score, paired_difference(one.hits, two.hits, seed))
        for one, two in zip(dense, other, strict=True)
        if one.beyond_chance
    ]


def at_chance(dense: Sequence[Answers]) -> list[str]:
    """Those at which it is not, by name."""
    return [f"{one.probe} ({one.way})" for one in dense if not one.beyond_chance]
