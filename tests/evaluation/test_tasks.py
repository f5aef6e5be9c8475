"""What is made of lm-eval's results, without lm-eval: :mod:`tests.integrations.test_lm_eval_tasks` has the rest."""

from __future__ import annotations

import importlib.util

import pytest

import prunecomp
from prunecomp.errors import OptionError
from prunecomp.evaluation.tasks import PAPER, Results, beside_dense


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


def test_how_many_shots_is_of_tasks_alone() -> None:
    with pytest.raises(OptionError, match=r"--fewshot 5.*no --tasks"):
        prunecomp.prune("examples/reference_model", 2, fewshot=5)
    with pytest.raises(OptionError, match=r"--limit 5.*no --tasks"):
        prunecomp.profile("examples/reference_model", limit=5)
    assert len(PAPER) == 10
