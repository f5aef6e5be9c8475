"""What a pruned model can still do, beside the dense one: texts, generation and probes, on the model as it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from prunecomp.checkpoint.apply import applied_plan
from prunecomp.checkpoint.fold import plan_fold
from prunecomp.data.windows import Windows
from prunecomp.engine.progress import Progress, silent
from prunecomp.evaluation.agreement import Standing, TextQuality, called, on_text
from prunecomp.evaluation.generation import Generation, Written, summed_up, write
from prunecomp.evaluation.items import MAKERS, make_probe
from prunecomp.evaluation.language import Language
from prunecomp.evaluation.probes import BEYOND, Answers, ProbeScore, answer, at_chance, beside_dense
from prunecomp.evaluation.prompts import PROMPTS
from prunecomp.evaluation.tasks import Results, Tasks, TaskScore
from prunecomp.evaluation.tasks import beside_dense as tasks_beside_dense

MOST_TOKENS = 64
"""Of an answer to a chat prompt."""


@dataclass(frozen=True)
class ModelProfile:
    """One model of a :class:`Profile`."""

    name: str
    removed: tuple[int, ...]
    texts: dict[str, TextQuality]
    generation: Generation | None
    written: list[Written]
    """The answers that generation is measured on."""
    probes: list[ProbeScore]
    tasks: list[TaskScore]


@dataclass(frozen=True)
class Profile:
    """The dense model and others made of it, on the same texts, prompts and problems."""

    models: list[ModelProfile]
    """The dense one first."""
    at_chance: list[str]
    """Probes that are left out, because the dense model does no better at them than a guess."""
    left_out: str | None
    """Why there is no generation and no probe, where there is none."""
    items: int
    seed: int

    def record(self) -> dict[str, Any]:
        """The profile as plain data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Named:
    """A model to look at; ``fold`` is how its seams go into its weights while it generates."""

    name: str
    standing: Standing
    fold: str = "up"


def capabilities(
    dense: Standing,
    others: Sequence[Named],
    texts: Mapping[str, Windows],
    languages: Mapping[Any, Language] | str,
    *,
    items: int,
    tasks: Tasks | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Profile:
    """Look at the dense model and ``others``.

    ``languages`` has for each decoder its model as one that generates; or it says why there is none. To generate, seams
    and overlays are folded into the weights in memory, as in an export, and taken out again: bit for bit.
    """
    models = [Named("dense", dense), *others]
    on_texts = {name: on_text(w, dense, [one.standing for one in others], progress) for name, w in texts.items()}
    written: list[list[Written]] = [[] for _ in models]
    answers: list[list[Answers]] = [[] for _ in models]
    results: list[Results] = []
    if not isinstance(languages, str):
        probes = [make_probe(name, items, seed) for name in MAKERS]
        for number, one in enumerate(models):
            stage = progress(
                f"{called(number, len(others))}: answering", len(PROMPTS) + len(probes) * items, "problems"
            )
            with stage as advance, in_use(one) as decoder:
                language = languages[decoder]
                written[number] = write(language, PROMPTS, MOST_TOKENS)
                advance(len(PROMPTS))
                for probe in probes:
                    answers[number] += answer(language, probe)
                    advance(len(probe.items))
                if tasks is not None:
                    results.append(tasks.ask(language))
    made = [
        ModelProfile(
            name=one.name,
            removed=one.standing.stack.removed,
            texts={text: found[number] for text, found in on_texts.items()},
            generation=summed_up(written[number], written[0] if number else None) if written[number] else None,
            written=written[number],
            probes=beside_dense(answers[0], answers[number], seed),
            tasks=tasks_beside_dense(results[0], results[number], seed) if results else [],
        )
        for number, one in enumerate(models)
    ]
    return Profile(made, at_chance(answers[0]), languages if isinstance(languages, str) else None, items, seed)


def why_unasked(language: Language, vocab_size: int, rows: int | None, items: int, seed: int) -> str | None:
    """Why a model of so many tokens cannot be asked what :func:`capabilities` asks, where there is a reason; ``rows``
    are the positions that it has a table for, if it has one. The ``language`` needs no weights."""
    try:
        texts = [language.chat(prompt) for prompt in PROMPTS]
        longest = max(map(len, texts)) + MOST_TOKENS
        for name in MAKERS:
            probe = make_probe(name, items, seed)
            asked = [language.encode(probe.examples + item.question) for item in probe.items]
            answers = [language.encode(item.answer) for item in probe.items]
            longest = max(longest, max(map(len, asked)) + max(map(len, answers)) + BEYOND)
            texts += [*asked, *answers]
    except Exception as error:  # what a tokenizer raises is up to its class
        return f"the tokenizer does not take what is asked ({error})"
    if not all(texts):
        return "the tokenizer, or its chat template, makes no tokens of what is asked"
    highest = max(map(max, texts))
    if highest >= vocab_size:
        return f"the tokenizer gives the id {highest}, and the model has rows for {vocab_size}: they are no pair"
    if rows is not None and longest > rows:
        return f"the model has positions for {rows} tokens, and what is asked takes {longest}"
    return None


@contextmanager
def in_use(one: Named) -> Iterator[Any]:
    """The decoder whose model is this one, for as long."""
    decoder, stack = one.standing.decoder, one.standing.stack
    with decoder.evaluating():
        if not stack.removed and not stack.overlays:
            yield decoder
            return
        with applied_plan(decoder.model, stack, plan_fold(decoder, stack, one.fold)):
            yield decoder
