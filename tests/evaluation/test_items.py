"""Problems made from a seed: each has one answer, and only right lines solve it."""

from __future__ import annotations

import ast
import json
from random import Random

import pytest

from prunecomp.evaluation.items import EXAMPLES, MAKERS, calculated, make_probe, same_function, same_values
from tests.seeds import seed


@pytest.mark.parametrize("name", MAKERS)
def test_answers_solve_and_wrong_ones_do_not(name: str) -> None:
    probe = make_probe(name, 40, seed())
    assert probe.examples.count("\n") == EXAMPLES
    for item in probe.items:
        assert len({item.answer, *item.wrong}) == 4
        assert item.question not in probe.examples
        assert probe.solves(item, item.answer.strip())
        assert not any(probe.solves(item, wrong.strip()) for wrong in item.wrong)
        assert not probe.solves(item, "")


@pytest.mark.parametrize("name", MAKERS)
def test_a_seed_gives_the_same_problems_and_another_others(name: str) -> None:
    assert make_probe(name, 20, 1).items == make_probe(name, 20, 1).items
    assert make_probe(name, 20, 1).items != make_probe(name, 20, 2).items


def test_questions_have_the_answers_that_they_should() -> None:
    for item in make_probe("add 3 digits", 30, seed()).items:
        a, _, b, _ = item.question.split()
        assert int(item.answer) == int(a) + int(b)
    for item in make_probe("reverse", 30, seed()).items:
        assert item.question.removesuffix(" ->").split()[:0:-1] == item.answer.split()
    for item in make_probe("lookup", 30, seed()).items:
        table, _, asked = item.question.partition(". Value of ")
        assert f"{asked.rstrip(':')}{item.answer}" in table
    for item in make_probe("brackets", 30, seed()).items:
        text = item.question.removeprefix("Close:").removesuffix("->") + item.answer
        text = text.replace(" ", "")
        while text:
            shorter = text.replace("()", "").replace("[]", "").replace("{}", "").replace("<>", "")
            assert shorter != text
            text = shorter


def test_the_least_and_the_greatest_number_are_no_better_guesses_than_others() -> None:
    """Right in at most a quarter of the problems, up to five standard errors of 0.025."""
    for name in ("add 2 digits", "add 3 digits", "lookup"):
        items = make_probe(name, 300, seed()).items
        ranks = [sum(int(wrong) < int(item.answer) for wrong in item.wrong) for item in items]
        assert max(ranks.count(0), ranks.count(3)) / 300 < 0.375


def test_few_different_problems_are_asked_once_each() -> None:
    probe = make_probe("add 1 digit", 10_000, 0)
    assert len(probe.items) == 81 - EXAMPLES


@pytest.mark.parametrize(
    "line", ["__import__('os')", "a.b", "open('x')", "9**9**9", "(" * 5000, "a if b else c", "", "[1]*10", "10000000"]
)
def test_what_a_model_writes_is_never_executed(line: str) -> None:
    item = make_probe("code", 1, 0).items[0]
    assert not same_function(item, line)


def test_an_expression_of_another_form_solves_the_same() -> None:
    item = next(i for i in make_probe("code", 60, seed()).items if " * " in i.answer)
    left, right = item.answer.split(" * ")
    assert same_function(item, f"{right}*{left.strip()}")
    names = {"a": Random(seed()).randint(1, 99), "b": 7}
    assert calculated(ast.parse("a * 2 - (b + 1)", mode="eval").body, names) == names["a"] * 2 - 8


def test_json_is_compared_as_values() -> None:
    item = make_probe("json", 1, 0).items[0]
    there = json.loads(item.answer)
    assert same_values(item, json.dumps(dict(reversed(there.items())), indent=None))
    assert not same_values(item, json.dumps({**there, "age": there["age"] + 1}))
    assert not same_values(item, "[" * 100_000)
