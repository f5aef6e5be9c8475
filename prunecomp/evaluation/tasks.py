"""Tasks of lm-eval (0.4.13), asked of a model as it stands in memory: few-shot prompts, choices, what it generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, inf
from pathlib import Path
from typing import Any

from prunecomp.errors import OptionError
from prunecomp.evaluation.language import Language
from prunecomp.io.values import several, shown
from prunecomp.metrics.bootstrap import DRAWS, Interval, paired_difference

PAPER = ("wsc273", "hellaswag", "piqa", "arc_easy", "arc_challenge", "boolq", "winogrande", "race", "copa", "mmlu")
"""The tasks of the paper (section 4.1), by lm-eval's names."""
FEWSHOT_SEED = 1234
"""That solved examples are drawn from, lm-eval's own."""
PROMPTS_AT_ONCE = 8
"""That are continued together, where a task has the model write."""
MEAN, ACCURACY = "mean over tasks", "acc"
"""The task that stands for all of several that have an accuracy, as the paper's tables have it; and its metric."""


@dataclass(frozen=True)
class TaskScore:
    """A model's score in a task, beside the dense model's."""

    task: str
    metric: str
    score: float
    error: float | None
    """One standard error, as lm-eval gives it."""
    dense: float
    items: int
    """Questions, or documents; of :data:`MEAN` tasks."""
    difference: Interval | None
    """Of the score less the dense one, over the same questions; none for what is no mean over questions."""
    retained: float | None = field(init=False)
    """The share of the dense score that is left, as the paper reports it; None where that is 0."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "retained", self.score / self.dense if self.dense else None)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TaskScore:
        """Back from JSON, where ``null`` is an infinite score."""
        numbers = {name: inf if record[name] is None else record[name] for name in ("score", "dense")}
        difference = record["difference"]
        known = {name: value for name, value in {**record, **numbers}.items() if name != "retained"}
        return cls(**{**known, "difference": None if difference is None else Interval(**difference)})


@dataclass(frozen=True)
class Tasks:
    """What is asked: names of tasks or groups that lm-eval knows, or files that describe one."""

    names: tuple[str, ...]
    shots: int | None = None
    """Solved examples before each question; as a task has it where None."""
    limit: int | None = None
    """Questions of each task, the first; all where None."""

    @classmethod
    def of(cls, text: str, shots: int | None, limit: int | None) -> Tasks:
        """From names with commas between them; ``paper`` stands for :data:`PAPER`.

        Raises :class:`OptionError` where lm-eval is not installed, where it knows no such task, and where the data of
        one cannot be had.
        """
        given = several("--tasks", text)
        names = [name for each in given for name in (PAPER if each == "paper" else (each,))]
        made = cls(tuple(dict.fromkeys(names)), shots, limit)
        made._check()
        return made

    def _check(self) -> None:
        manager, tasks = _lm_eval("tasks"), []
        known = manager.TaskManager()
        for name in self.names:
            tasks.append(_described(name))
            if tasks[-1] is name and not known.match_tasks([name]):
                raise OptionError(f"--tasks {shown(name)}: lm-eval knows no such task; `lm-eval ls tasks` lists them")
            try:
                self._try(manager.get_task_dict([tasks[-1]], known))
            except Exception as error:  # what a task's own code and its data raise
                raise OptionError(
                    f"--tasks {shown(name)}: cannot be made ready ({shown(str(error))}); without a network give a YAML "
                    "file whose data are here, or leave it out"
                ) from error

    def _try(self, found: Mapping[Any, Any]) -> None:
        """Make the first question of each task as it will be asked."""
        for task in found.values():
            if isinstance(task, Mapping):  # a group
                self._try(task)
                continue
            if getattr(task, "UNSAFE_CODE", False):
                raise ValueError("it runs what the model writes")
            if self.shots is not None and task.get_config("num_fewshot") != 0:  # lm-eval's own rule
                task.set_config(key="num_fewshot", value=self.shots)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
            task.build_all_requests(limit=1, rank=0, world_size=1)

    def ask(self, language: Language) -> Results:
        """Everything, of one model."""
        try:
            found = _lm_eval("evaluator").simple_evaluate(
                model=_asked(language), tasks=[_described(name) for name in self.names], num_fewshot=self.shots,
                limit=self.limit, bootstrap_iters=DRAWS, fewshot_random_seed=FEWSHOT_SEED, verbosity="ERROR",
            )  # fmt: skip
        except (AssertionError, LookupError, TypeError, ValueError) as error:  # of a task's own code
            raise OptionError(f"--tasks {','.join(self.names)}: lm-eval failed ({shown(str(error))})") from error
        inner = {name for some in found.get("group_subtasks", {}).values() for name in some} - set(self.names)
        return Results({name: one for name, one in found["results"].items() if name not in inner}, found["samples"])


@dataclass(frozen=True)
class Results:
    """lm-eval's own, without the parts of groups."""

    scores: Mapping[str, Mapping[str, Any]]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]

    def of(self, task: str, kind: str) -> list[Mapping[str, Any]]:
        """The answers in a task, as one of its filters reads them: each stands there once for every filter."""
        return [one for one in self.samples.get(task, ()) if one["filter"] == kind]


def beside_dense(dense: Results, other: Results, seed: int) -> list[TaskScore]:
    """Every score of every task that is a number; before them, where several tasks have an accuracy, :data:`MEAN`."""
    found = [
        TaskScore(
            task=task,
            metric=metric if kind == "none" else f"{metric} ({kind})",
            score=float(value),
            error=_number(scores.get(f"{metric}_stderr,{kind}")),
            dense=float(dense.scores[task][name]),
            items=len(other.of(task, kind)) or int(scores.get("sample_len", 0)),
            difference=_difference(dense.of(task, kind), other.of(task, kind), metric, seed),
        )
        for task, scores in other.scores.items()
        for name, value in scores.items()
        for metric, _, kind in [name.partition(",")]
        if kind and not metric.endswith("_stderr") and _number(value) is not None
    ]
    rated = [one for one in found if one.metric == ACCURACY]
    if len(rated) < 2:
        return found
    score, dense_score = (
        fsum(values) / len(rated) for values in zip(*((one.score, one.dense) for one in rated), strict=True)
    )
    return [TaskScore(MEAN, ACCURACY, score, None, dense_score, len(rated), None), *found]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _difference(
    dense: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], metric: str, seed: int
) -> Interval | None:
    pairs = [(_number(one.get(metric)), _number(two.get(metric))) for one, two in zip(dense, other, strict=True)]
    if not pairs or any(one not in (0, 1) or two not in (0, 1) for one, two in pairs):
        return None
    return paired_difference([bool(one) for one, _ in pairs], [bool(two) for _, two in pairs], seed)


def _described(name: str) -> str | dict[str, Any]:
    """A task's name as it is, its file as what is in it."""
    if not name.endswith((".yaml", ".yml")):
        return name
    if not Path(name).is_file():
        raise OptionError(f"--tasks {shown(name)}: there is no such file")
    load = _lm_eval("tasks._yaml_loader").load_yaml
    try:
        found: dict[str, Any] = load(name)
    except Exception as error:  # what a parser, and what a file names as a function, raise
        raise OptionError(f"--tasks {shown(name)}: cannot be read as a task ({shown(str(error))})") from error
    if not isinstance(found, dict) or "task" not in found:
        raise OptionError(f"--tasks {shown(name)}: it is no task: it has no `task:` that names it")
    return found


def _lm_eval(part: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"lm_eval.{part}")
    except ImportError as error:
        raise OptionError(
            f"--tasks: needs lm-eval, and it cannot be imported ({error}); pip install 'prunecomp[eval]'"
        ) from error


def _asked(language: Language) -> Any:
    """The model as lm-eval asks for one: its own ``hf``, so that texts are cut into tokens, and too long ones
    shortened, as there. But a context is run once for all of its continuations, and what contexts have in common once
    for all of them."""
    base = _lm_eval("models.huggingface").HFLM

    class Standing(base):  # type: ignore[misc, valid-type]
        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], *_: Any, **__: Any
        ) -> list[tuple[float, bool]]:
            groups: dict[tuple[int, ...], list[int]] = {}
            for number, (_, before, after) in enumerate(requests):
                text = [*before, *after][-(self.max_length + 1) :]
                groups.setdefault(tuple(text[: -len(after)]), []).append(number)
            contexts = [list(context) for context in groups]
            each = language.likelihoods(contexts, [[requests[i][2] for i in some] for some in groups.values()])
            found = {i: one for some, ones in zip(groups.values(), each, strict=True)
                     for i, one in zip(some, ones, strict=True)}  # fmt: skip
            return [(found[i].log, found[i].greedy) for i in range(len(requests))]

    return Standing(language.model, tokenizer=language.tokenizer, batch_size=PROMPTS_AT_ONCE)
