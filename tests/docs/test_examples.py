"""The examples in docstrings of public functions run, and give what they say."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch

import prunecomp

ROOT = Path(__file__).parents[2]
FUNCTIONS = ("prune", "score", "evaluate", "compare", "collect", "pruner_for", "plan", "profile")
SLOW = {"profile"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in FUNCTIONS])
def test_the_example_of_a_public_function_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names = {"prunecomp": prunecomp, "torch": torch}
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(prunecomp, name), name, module=False, globs=names)
    assert example.examples, f"{name} has no example"
    told: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=told.append)
    assert not told, "".join(told)
