"""How many layers go, as callers state it, and the revision of a hub id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunecomp
from prunecomp.errors import OptionError
from prunecomp.io.values import at_revision
from prunecomp.model.source import opening
from prunecomp.options import PruneOptions
from prunecomp.options.targets import Share, kept
from tests.command_line import invoke
from tests.models import build
from tests.situations.small import Small, said, small

__all__ = ["small"]

WAYS: list[dict[str, Any]] = [{"layers": 2}, {"layers_left": 4}, {"keep": "60%"}, {"keep": " 66.6 % "}]


def test_every_way_to_state_it_is_the_same_run(small: Small) -> None:
    """Of six layers: 60 % are 3.6 and 66.6 % are 3.996, and never fewer stay than were asked for."""
    results = [prunecomp.prune(small.folder, calibration=np.load(small.windows), **way) for way in WAYS]
    assert results[0].stack.num_layers == 6
    for result in results:
        assert result.removed == results[0].removed
        assert result.options.record() == results[0].options.record()
    assert [prunecomp.plan(small.folder, **way).layers for way in WAYS] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("share", "layers", "left"), [("80%", 30, 24), ("80%", 12, 10), ("0.1%", 30, 1), ("70%", 10, 7)]
)
def test_a_share_is_rounded_up_exactly(share: str, layers: int, left: int) -> None:
    """70 % of 10 is 7: a product of floats would make it 8."""
    read = kept("--keep", share)
    assert isinstance(read, Share)
    assert read.of(layers) == left
    assert PruneOptions.of("prune", {"keep": share}).aimed(layers).layers == layers - left


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "--layers: prune needs it"),
        ({"layers": 2, "layers_left": 4}, "--layers 2 and --layers-left 4 each say"),
        ({"layers": 2, "keep": "60%"}, "--layers 2 and --keep 60% each say"),
        ({"layers_left": 4, "keep": "60%"}, "--layers-left 4 and --keep 60% each say"),
        ({"layers_left": 6}, "--layers-left 6: the model has 6 layers, and none would go"),
        ({"layers_left": 99}, "--layers-left 99: the model has 6 layers"),
        ({"layers_left": 0}, "--layers-left 0: give at least 1"),
        ({"keep": "99%"}, "--keep 99%: the model has 6 layers, and none would go"),
        ({"keep": "100%"}, "--keep 100%: write the share"),
        ({"keep": "0%"}, "--keep 0%: write the share"),
        ({"keep": "-5%"}, "--keep -5%: write the share"),
        ({"keep": "0-1,60%"}, "for both, give the share as --layers-left"),
        ({"layers_left": 5, "span": 2}, "--span 2: only --layers 1 are to go"),
        ({"layers_left": 3, "span": 2, "one_shot": True}, "--layers 3 must be a multiple"),
        ({"layers_left": 2, "keep": "0-2"}, "2"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_told_before_any_work(
    small: Small, tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(OptionError) as told:
        prunecomp.prune(small.folder, calibration=small.windows, **given)
    assert words in str(told.value)
    flags = [word for name, value in given.items()
             for word in ([f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)]))]  # fmt: skip
    answer = invoke("prune", small.folder, "--calibration", small.windows, "--out", tmp_path / "out", *flags)
    assert answer.exit_code == 2
    assert words in said(answer)
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_takes_no_share(small: Small) -> None:
    with pytest.raises(OptionError, match="--keep 60%: a comparison measures after several removals"):
        prunecomp.compare(small.folder, "1-2", small.windows, eval={"x": small.windows}, keep="60%")


def test_what_is_given_beside_a_record_wins(small: Small, tmp_path: Path) -> None:
    first = invoke("prune", small.folder, "--layers-left", 5, "--calibration", small.windows, "--out", tmp_path / "one")
    assert first.exit_code == 0, first.output
    record = tmp_path / "one" / "prunecomp.json"
    assert json.loads(record.read_text())["options"]["layers"] == 1
    for number, flags in enumerate((["--keep", "60%"], ["--layers-left", 4], ["--layers", 2])):
        out = tmp_path / f"again{number}"
        again = invoke("prune", "--like", record, "--out", out, *flags)
        assert again.exit_code == 0, again.output
        assert json.loads((out / "prunecomp.json").read_text())["options"]["layers"] == 2


def test_a_revision_is_part_of_the_name(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def resolve(model: str, *rest: Any, **more: Any) -> Path:
        asked.append(model)
        return small.folder

    monkeypatch.setattr(opening, "resolve_model", resolve)
    result = prunecomp.prune("org/name", 1, np.load(small.windows), revision="v1.0")
    assert prunecomp.prune("org/name@v1.0", 1, np.load(small.windows)).record()["model"] == "org/name@v1.0"
    assert result.record()["model"] == "org/name@v1.0"
    assert "org/name@v1.0" in result._call()
    answer = invoke("score", "org/name", "--calibration", small.windows, "--revision", "v1.0")
    assert answer.exit_code == 0, answer.output
    assert asked == ["org/name@v1.0"] * 3


@pytest.mark.parametrize(
    ("model", "revision", "words"),
    [
        ("org/name@v1", "v2", "the model names a revision too, org/name@v1"),
        ("/", "v1", "a folder or file has none"),
        ("org/name", " ", "give a branch, a tag or a commit"),
    ],
)
def test_a_revision_of_what_has_none_is_refused(model: str, revision: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        at_revision(model, revision)


def test_a_model_in_memory_has_no_revision() -> None:
    with pytest.raises(OptionError, match="a model in memory has none"):
        prunecomp.score(build("llama"), [[1, 2, 3, 4]], revision="v1")
