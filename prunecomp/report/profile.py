"""A capability profile as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prunecomp.evaluation.profile import ModelProfile, Profile
from prunecomp.evaluation.tasks import TaskScore
from prunecomp.io.escape import markdown as escaped
from prunecomp.io.escape import markdown_table
from prunecomp.metrics.bootstrap import LEVEL
from prunecomp.report.console import Console, Table

UNASKED = "No generation, no probes and no tasks: {}."

Grid = tuple[str, list[str], list[list[str]]]
"""A title, headings, and rows that begin with a name."""


def profile_grids(profile: Profile) -> Iterator[Grid]:
    """Texts, generation and probes, each a row a model."""
    models = profile.models
    for text in models[0].texts:
        one = models[0].texts[text]
        title = f"{text}: {one.windows} x {one.seqlen} tokens, {one.tokens:,} predicted"
        headings = ["model", "gone", "perplexity", "KL to dense, nats", "top-1 agreement"]
        yield title, headings, [[*_head(m), *_on_text(m, text)] for m in models]
    if models[0].generation is not None:
        prompts = len(models[0].written)
        headings = ["model", "gone", "tokens", "as dense for", "all as dense", "repeated 4-grams", "ends by itself"]
        yield f"greedy answers to {prompts} chat prompts", headings, [[*_head(m), *_generation(m)] for m in models]
    if models[0].probes:
        names = [f"{probe.probe} ({probe.way})" for probe in models[0].probes]
        title = f"probes of up to {profile.items} problems: score, and {LEVEL:.0%} interval of what is lost or won"
        rows = [[name, *(_probe(m, i, m is models[0]) for m in models)] for i, name in enumerate(names)]
        yield title, ["probe", *(m.name for m in models)], rows
    if models[0].tasks:
        yield tasks_grid([(m.name, m.tasks) for m in models], dense=0)


def tasks_grid(models: Sequence[tuple[str, Sequence[TaskScore]]], dense: int | None = None) -> Grid:
    """A row a task and metric, a column for each of the ``models`` by name; number ``dense`` of them stands alone."""
    title = f"tasks of lm-eval: score, share of the dense one, and {LEVEL:.0%} interval of what is lost or won"
    rows = [
        [f"{each[0].task} ({each[0].metric}, {each[0].items})", *(_task(one, n == dense) for n, one in enumerate(each))]
        for each in zip(*(tasks for _, tasks in models), strict=True)
    ]
    return title, ["task", *(name for name, _ in models)], rows


def scored(found: TaskScore) -> str:
    """A score, and what share of the dense one it is."""
    return _beside(f"{found.score:.3f}", found)


def _task(found: TaskScore, alone: bool) -> str:
    score = f"{found.score:.3f}" if found.error is None else f"{found.score:.3f} ± {found.error:.3f}"
    between = [] if found.difference is None else [f"{found.difference.low:+.3f} to {found.difference.high:+.3f}"]
    return score if alone else _beside(score, found, *between)


def _beside(score: str, found: TaskScore, *more: str) -> str:
    beside = [*([] if found.retained is None else [f"{found.retained:.0%}"]), *more]
    return f"{score} ({'; '.join(beside)})" if beside else score


def _head(model: ModelProfile) -> list[str]:
    return [model.name, str(len(model.removed))]


def _on_text(model: ModelProfile, text: str) -> list[str]:
    found = model.texts[text]
    agreement = found.agreement
    beside = ["", ""] if agreement is None else [agreement.kl.shown(3), agreement.top1.shown(3)]
    return [found.perplexity.shown(2), *beside]


def _generation(model: ModelProfile) -> list[str]:
    found = model.generation
    assert found is not None
    beside = ["", ""] if found.until_different is None or found.identical is None else [
        f"{found.until_different:.1f} tokens", f"{found.identical:.0%}",
    ]  # fmt: skip
    return [f"{found.tokens:.1f}", *beside, f"{found.repetition:.0%}", f"{found.ended:.0%}"]


def _probe(model: ModelProfile, number: int, dense: bool) -> str:
    probe = model.probes[number]
    return (
        f"{probe.score:.0%}"
        if dense
        else f"{probe.score:.0%} ({probe.difference.low:+.0%} to {probe.difference.high:+.0%})"
    )


def notes(profile: Profile) -> list[str]:
    """What is not in the tables, and why."""
    found = []
    if profile.left_out is not None:
        found.append(UNASKED.format(profile.left_out))
    if profile.at_chance:
        found.append(f"Left out, for the dense model is no better than a guess: {', '.join(profile.at_chance)}.")
    return found


def table_of(grid: Grid) -> Table:
    """For a terminal."""
    title, headings, rows = grid
    return Table.of(title, headings, rows, left=headings[:1], fold=headings)


def print_profile(console: Console, profile: Profile) -> None:
    """To a terminal."""
    for grid in profile_grids(profile):
        console.print(table_of(grid))
    for note in notes(profile):
        console.print(note, highlight=False)


def profile_markdown(profile: Profile) -> str:
    lines: list[str] = []
    for title, headings, rows in profile_grids(profile):
        lines += [f"## {escaped(title)}", "", *markdown_table(list(map(escaped, headings)), rows), ""]
    return "\n".join([*lines, *notes(profile)]) + "\n"
