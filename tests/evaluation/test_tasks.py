"""What is made of lm-eval's results, without lm-eval: :mod:`tests.integrations.test_lm_eval_tasks` has the rest."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.errors import OptionError
from prunecomp.evaluation import profile
from prunecomp.evaluation.tasks import MEAN, PAPER, Results, TaskScore, beside_dense
from tests.asking import heard
from tests.command_line import invoke

__all__ = ["heard"]


def results(strict: list[int], flexible: list[int]) -> Results:
    """Of one task that is read by two filters."""
    samples = [
        {"filter": kind, "doc_id": number, "exact_match": hit}
        for kind, hits in (("strict", strict), ("flexible", flexible))
        for number, hit in enumerate(hits)
    ]
    scores = {"alias": "sums", "sample_len": len(strict)}
    for kind, hits in (("strict", strict), ("flexible", flexible)):
        scores |= {f"exact_match,{kind}": sum(hits) / len(hits), f"exact_match_stderr,{kind}": 0.1}
    return Results({"sums": scores}, {"sums": samples})


def test_each_filter_has_its_own_answers() -> None:
    dense, other = results([1] * 10, [1] * 10), results([0] * 10, [1] * 10)
    strict, flexible = beside_dense(dense, other, seed=0)
    assert (strict.metric, strict.items, strict.score, strict.retained) == ("exact_match (strict)", 10, 0.0, 0.0)
    assert strict.difference is not None
    assert (strict.difference.low, strict.difference.high) == (-1.0, -1.0)
    assert flexible.difference is not None
    assert (flexible.difference.low, flexible.difference.high) == (0.0, 0.0)
    assert (flexible.items, flexible.retained, flexible.error) == (10, 1.0, 0.1)


def test_what_is_no_hit_or_miss_has_no_interval_and_no_number_is_left_out() -> None:
    dense = Results({"text": {"loss,none": 2.0, "loss_stderr,none": "N/A", "note,none": "x"}}, {})
    (one,) = beside_dense(
        dense, Results({"text": {"loss,none": 3.0, "loss_stderr,none": "N/A", "note,none": "x"}}, {}), 0
    )
    assert (one.metric, one.score, one.dense, one.error, one.difference, one.retained) == (
        "loss",
        3.0,
        2.0,
        None,
        None,
        1.5,
    )


def test_without_lm_eval_it_is_told_what_to_install() -> None:
    if importlib.util.find_spec("lm_eval") is not None:
        pytest.skip("lm-eval is installed")
    with pytest.raises(OptionError, match=r"--tasks: needs lm-eval.*prunecomp\[eval\]"):
        prunecomp.prune("examples/reference_model", 2, tasks="paper")


def test_several_accuracies_have_a_mean_before_them() -> None:
    """As the paper's tables: of 0.5 and 0.8, dense 0.8 and 0.8."""
    dense = Results({"a": {"acc,none": 0.8, "loss,none": 1.0}, "b": {"acc,none": 0.8}}, {})
    other = Results({"a": {"acc,none": 0.5, "loss,none": 3.0}, "b": {"acc,none": 0.8}}, {})
    mean, *rest = beside_dense(dense, other, 0)
    assert (mean.task, mean.metric, mean.score, mean.dense, mean.items) == (MEAN, "acc", pytest.approx(0.65), 0.8, 2)
    assert mean.retained == pytest.approx(0.8125)
    assert [(one.task, one.metric) for one in rest] == [("a", "acc"), ("a", "loss"), ("b", "acc")]
    assert [TaskScore.from_record(json.loads(json.dumps(asdict(one)))) for one in (mean, *rest)] == [mean, *rest]
    assert TaskScore.from_record({**asdict(mean), "score": None}).score == math.inf


def test_evaluate_asks_them_beside_the_base(reference_model: Path, heard: list[int], tmp_path: Path) -> None:
    pruned = prunecomp.prune(reference_model, 3, torch.arange(64).view(2, 32), preset="paper").save(tmp_path / "out")
    text = torch.arange(128).view(2, 64)
    options: dict[str, Any] = {"dtype": "float32"}
    value = prunecomp.evaluate(pruned, text, **options)
    found = prunecomp.evaluate(pruned, text, tasks="one,two", base=reference_model, **options)
    assert (found, value.tasks, heard) == (value, [], [16, 13])
    alone = prunecomp.evaluate(pruned, tasks="one,two", **options)
    assert math.isnan(alone)
    assert [one.score for one in alone.tasks] == [one.score for one in found.tasks]
    dense = prunecomp.evaluate(reference_model, tasks="one,two", **options)
    assert [one.dense for one in found.tasks] == [one.score for one in dense.tasks]
    assert found.tasks[0].retained == found.tasks[0].score / dense.tasks[0].score
    words = ["eval", pruned, "--tasks", "one,two", "--base", reference_model, "--dtype", "float32"]
    told = json.loads(invoke(*words, "--json").stdout)
    assert (told["perplexity"], told["base"]) == (None, str(reference_model))
    assert [TaskScore.from_record(one) for one in told["tasks"]] == found.tasks
    shown = invoke(*words).stdout
    assert f"{found.tasks[0].score:.3f} ({found.tasks[0].retained:.0%})" in shown
    assert "perplexity" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--eval: give a text to measure perplexity on, or --tasks"),
        ({"eval": "x", "base": "y"}, "--base: is asked --tasks alone"),
        ({"eval": "x", "fewshot": 2}, "--fewshot 2: there are no --tasks"),
    ],
)
def test_evaluate_is_told_what_to_measure(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        prunecomp.evaluate("examples/reference_model", **options)


def test_evaluate_asks_no_streamed_model(reference_model: Path, heard: list[int]) -> None:
    with pytest.raises(OptionError, match=r"--tasks one: .*streamed"):
        prunecomp.evaluate(reference_model, tasks="one", device_memory=20_000_000, dtype="float32")
    assert heard == []


def test_each_stop_of_a_curve_has_them(
    reference_model: Path, heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "MAKERS", {})
    monkeypatch.setattr(profile, "PROMPTS", profile.PROMPTS[:1])
    tokens = torch.arange(64).view(2, 32)
    found = prunecomp.curve(reference_model, "1,4", tokens, preset="paper", dtype="float32", tasks="one,two")
    assert heard == [16, 15, 12]
    scores = [result.profile.models[1].tasks for result in found if result.profile is not None]
    assert [stop["retained"] for stop in found.record()["stops"]] == [one[0].retained for one in scores]
    headings, *rows = found.rows()
    assert [row[headings.index("tasks")] for row in rows] == ["", *(f"{one[0].retained:.1%}" for one in scores)]
    assert f"Tasks: what is retained of the dense score, {MEAN} (acc)." in found.markdown()


def test_how_many_shots_is_of_tasks_alone() -> None:
    with pytest.raises(OptionError, match=r"--fewshot 5.*no --tasks"):
        prunecomp.prune("examples/reference_model", 2, fewshot=5)
    with pytest.raises(OptionError, match=r"--limit 5.*no --tasks"):
        prunecomp.profile("examples/reference_model", limit=5)
    assert len(PAPER) == 10
