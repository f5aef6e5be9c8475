"""Options that cannot be meant as given: exit code 2, the option's name and what would be right, before any work."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import prunecomp
from prunecomp.compare import Arm
from prunecomp.errors import OptionError
from tests.situations.small import Small, invoke, said, small

__all__ = ["small"]

RANGES = "write layer numbers and ranges, as in 0-3,7"
ORDER = "write layer numbers in order, as in 7,3,5"
SIZES = "write bytes, or a number with a unit"
DEVICES = "choose auto, cpu, cuda or"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--keep 5-2", "--keep 5-2: 5-2 runs backwards; write 2-5"),
        ("--candidates 1,5-2", "--candidates 1,5-2: 5-2 runs backwards; write 2-5"),
        ("--keep 0--3", RANGES),
        ("--keep=", RANGES),
        ("--keep=' '", RANGES),
        ("--keep 1,,2", RANGES),
        ("--keep 3-", RANGES),
        ("--keep=-1", RANGES),
        ("--candidates=-1", RANGES),
        ("--candidates 1_0", RANGES),
        ("--keep 0-999", "--keep 6, 7, 8, 9, 10, 11, 12, 13, ... (994 in all): the model's layers are 0 to 5"),
        ("--keep 0-99999999999", "no model has so many layers"),
        ("--metric given --given=", ORDER),
        ("--metric given --given 3,", ORDER),
        ("--metric given --given 1-3", ORDER),
        ("--metric given --given=-1", ORDER),
        ("--metric given --given 3", "--given 3 names 1 layers, and --layers 2 are to go: give as many"),
        ("--metric given --given 3,3", "--given 3, 3: list layers from 0 to 5 once each"),
        ("--metric given", "--metric given needs the layers to remove, in order"),
        ("--seed=-1", "--seed -1: give from 0 to"),
        ("--seed 18446744073709551616", "--seed 18446744073709551616: give from 0 to"),
        ("--device foo", DEVICES),
        ("--device mps", DEVICES),
        ("--device meta", DEVICES),
        ("--device cpu:1", DEVICES),
        ("--device=", DEVICES),
        ("--device cuda:99", "--device cuda:99: "),
        ("--max-shard-size inf", "--max-shard-size inf: give GB a file"),
        ("--max-shard-size nan", "--max-shard-size nan: give GB a file"),
        ("--max-shard-size 1e-9", "give GB a file, from 0.001"),
        ("--device-memory inf", SIZES),
        ("--device-memory 1e400GB", SIZES),
        ("--device-memory=-1", SIZES),
        ("--device-memory=", SIZES),
        ("--device-memory 0", "--device-memory 0: give at least 1 bytes"),
        ("--disk=", "--disk '': give a path"),
        ("--disk /nonexistent", "--disk /nonexistent: no such folder"),
        ("--confidence nan", "--confidence nan: give a probability"),
        ("--compile maybe", "--compile maybe: choose auto, on, off"),
        ("--attn fast", "--attn fast: choose auto, sdpa"),
        ("--metric [/b]", "--metric [/b]: choose bi, span"),
        ("--span 3", "--span 3: only --layers 2 are to go"),
        ("--span 3 --metric ppl", "--span 3: only --layers 2 are to go"),
        ("--candidates 3", "only 1 of the model's 6 layers are candidates, so at most 1 can be removed"),
        ("--keep 0-5", "so at most 0 can be removed"),
    ],
)
def test_prune_refuses_before_any_work(small: Small, tmp_path: Path, options: str, message: str) -> None:
    out, words = tmp_path / "out", shlex.split(options)
    result = invoke("prune", small.folder, "--layers", 2, "--calibration", small.windows, "--out", out, *words)
    assert (result.exit_code, message in said(result)) == (2, True), result.output
    assert list(tmp_path.iterdir()) == []  # no journal either


def test_a_card_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, small: Small) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(OptionError, match="--device cuda:99: the last card here is cuda:1"):
        prunecomp.evaluate(small.folder, np.load(small.windows), device="cuda:99")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("1-99999999", "--layers 1-99999999: no model has so many layers"),
        ("1-9999", "--layers 9999: only 6 of the model's 6 layers"),
        ("2-1", "--layers 2-1: 2-1 runs backwards; write 1-2"),
        ("", "--layers '': write layer numbers and ranges"),
    ],
)
def test_a_comparison_is_bounded_by_the_model(small: Small, tmp_path: Path, layers: str, message: str) -> None:
    result = invoke(
        "compare", small.folder, f"--layers={layers}", "--calibration", small.windows, "--eval",
        f"x={small.windows}", "--out", tmp_path / "out",
    )  # fmt: skip
    assert (result.exit_code, message in said(result)) == (2, True), result.output


def test_all_the_candidates_that_were_named_can_go(small: Small) -> None:
    tokens = np.load(small.windows)
    for more in ({}, {"one_shot": True}, {"confidence": 0.9}, {"metric": "ppl"}, {"metric": "span"}):
        assert sorted(prunecomp.prune(small.folder, 2, tokens, candidates=[3, 4], **more, preset="paper").removed) == [
            3,
            4,
        ]
    with pytest.raises(OptionError, match="at most 5 can be removed"):
        prunecomp.prune(small.folder, 6, tokens, candidates=range(6), preset="paper")


@pytest.mark.parametrize("command", ["prune", "plan"])
@pytest.mark.parametrize(
    "options", ["--layers 2 --metric taylor", "--layers 2 --span 3 --metric ppl", "--layers 2 --span 2 --metric ppl",
                "--layers 6", "--layers 99999999999999999999", "--layers 2 --metric magic", "--layers 2 --device mps"],
)  # fmt: skip
def test_a_plan_refuses_what_a_run_refuses(small: Small, tmp_path: Path, command: str, options: str) -> None:
    run = ["--calibration", small.windows, "--out", tmp_path / "out"]
    answers = {
        name: invoke(name, small.folder, *options.split(), *(run if name == "prune" else []))
        for name in ("prune", "plan")
    }
    assert answers[command].exit_code == 2
    assert said(answers["prune"]) == said(answers["plan"])


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"layers": "3"}, "--layers '3': give a whole number"),
    ({"layers": 2.5}, "--layers 2.5: give a whole number"),
    ({"layers": True}, "--layers True: give a whole number"),
    ({"keep": 5}, r"--keep 5: give layer numbers as a list, as in \[0, 1, 7\]"),
    ({"keep": "0--3"}, "--keep 0--3: write layer numbers and ranges"),
    ({"given": "3-1"}, "--given 3-1: write layer numbers in order"),
    ({"keep": [0.5]}, "--keep 0.5: give a whole number"),
    ({"keep": range(10**12)}, "no model has so many layers"),
    ({"candidates": 3}, "--candidates 3: give layer numbers as a list"),
    ({"given": 3}, "--given 3: give layer numbers as a list"),
    ({"metric": None}, "--metric None: give its name as text"),
    ({"compensation": 3}, "--compensation 3: give its name as text"),
    ({"dtype": 16}, "--dtype 16: choose auto, float32"),
    ({"device": 0}, "--device 0: give its name as text"),
    ({"samples": 0}, "--samples 0: give at least 1"),
    ({"seqlen": 0}, "--seqlen 0: give at least 2"),
    ({"seed": -1}, "--seed -1: give from 0 to 18446744073709551615"),
    ({"seed": 2**64}, "--seed 18446744073709551616: give from 0"),
    ({"confidence": "0.9"}, "--confidence 0.9: give a probability"),
    ({"one_shot": "yes"}, "--one-shot 'yes': give True or False"),
    ({"span": 0}, "--span 0: give at least 1"),
    ({"fold": None}, "--fold None: choose up, down"),
    ({"parity": True}, "--parity True: choose official"),
    ({"compile": True}, "--compile True: choose auto, on, off"),
    ({"device_memory": "24XB"}, "--device-memory 24XB: write bytes, or a number with a unit"),
    ({"device_memory": 2.5}, "--device-memory 2.5: give a whole number of bytes"),
    ({"disk": 5}, "--disk 5: give a path"),
    ({"journal": 5}, "journal 5: give a path"),
    ({"allow_pickle": 1}, "--allow-pickle 1: give True or False"),
    ({"tokenizer": "mine"}, "tokenizer: give one of transformers, not str"),
    ({"model": None}, "a NoneType is no model: give a folder, a hub id, or a causal language model of transformers"),
    ({"model": nn.Linear(2, 2)}, "a Linear is no model: give a folder"),
    ({"model": ""}, "model '': give a local folder or a hub id"),
    ({"model": "a\0b"}, "model 'a.*b': give a local folder or a hub id"),
    ({"model": "x" * 300}, "no folder and no hub id has so long a name"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS, ids=[message for _, message in ARGUMENTS])
def test_an_argument_of_another_kind_is_named(arguments: dict[str, Any], message: str, memory_model: Any) -> None:
    model, tokens = memory_model
    with pytest.raises(OptionError, match=message):
        prunecomp.prune(**{"model": model, "layers": 2, "calibration": tokens, **arguments}, preset="paper")


@pytest.fixture(scope="module")
def memory_model(small: Small) -> tuple[Any, np.ndarray]:
    return prunecomp.pruner_for(small.folder, np.load(small.windows)).decoder.model, np.load(small.windows)


def test_values_of_numpy_and_torch_are_taken(memory_model: Any, small: Small, tmp_path: Path) -> None:
    model, tokens = memory_model
    given = {"seed": np.int64(3), "candidates": torch.tensor([4, 3]), "dtype": torch.float32}
    result = prunecomp.prune(model, np.int64(2), tokens, device=torch.device("cpu"), **given, preset="paper")
    assert result.options.candidates == [3, 4]
    result.save(tmp_path / "out")  # and its record is JSON
    half = prunecomp.prune(small.folder, 1, tokens, dtype=torch.float16, preset="paper")
    assert half.options.dtype == "float16"


@pytest.mark.parametrize("seqlen", [1, 0, -5, 2.5, "16"])
def test_a_window_has_two_tokens_in_every_function(memory_model: Any, small: Small, seqlen: Any) -> None:
    model, tokens = memory_model
    with pytest.raises(OptionError, match="--seqlen"):
        prunecomp.evaluate(model, tokens.ravel(), seqlen=seqlen)
    for function in (prunecomp.score, prunecomp.collect, prunecomp.pruner_for):
        with pytest.raises(OptionError, match="--seqlen"):
            function(model, tokens.ravel(), seqlen=seqlen)
    with pytest.raises(OptionError, match="--seqlen"):
        prunecomp.plan(small.folder, 2, seqlen=seqlen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "--samples 0: give at least 1"),
        ({"metrics": 3}, "--metrics 3: give a list"),
        ({"metrics": "bi,,last"}, "--metrics bi,,last: write names with commas"),
        ({"metrics": []}, "--metrics .*: give a list with at least one entry"),
        ({"metrics": ["magic"]}, "--metrics: --metric magic: choose"),
        ({"compensations": [None]}, "--compensations None: give its name"),
        ({"one_shot": 1}, "--one-shot 1: give a list"),
        ({"layers": 3}, "--layers 3: give layer numbers as a list"),
        ({"layers": "2,,4"}, "--layers 2,,4: write layer numbers and ranges"),
        ({"arms": ["bi"]}, "arms: give prunecomp.compare.Arm objects"),
        ({"arms": [Arm("bi", "none")], "metrics": ["bi"]}, "metrics: the arms say what is compared already"),
        ({"arms": [Arm("bi", "none")], "preset": "paper"}, "preset: the arms say what is compared already"),
        ({"preset": 3}, "--preset 3: choose paper-table5, paper"),
        ({"earlier": 3}, "earlier: give the Comparison"),
        ({"eval": {3: np.zeros((2, 8), dtype=int)}}, "--eval: 3 is no name"),
    ],
)
def test_a_comparison_names_the_argument(memory_model: Any, arguments: dict[str, Any], message: str) -> None:
    model, tokens = memory_model
    with pytest.raises(OptionError, match=message):
        prunecomp.compare(model, **{"layers": [1], "calibration": tokens, "eval": {"x": tokens}, **arguments})


@pytest.mark.parametrize("layer", ["3", 2.5, True, None, [3], -1])
def test_a_pruner_removes_layers_by_number(memory_model: Any, layer: Any) -> None:
    pruner = prunecomp.pruner_for(*memory_model)
    with pytest.raises(OptionError, match="remove: "):
        pruner.remove(layer)
    assert pruner.removed == []


@pytest.mark.parametrize("value", [None, 5])
def test_progress_that_cannot_be_told_is_refused_before_the_work(small: Small, value: Any) -> None:
    result = prunecomp.prune(small.folder, 1, small.windows, preset="paper")
    for call in (
        lambda: prunecomp.prune(small.folder, 1, small.windows, progress=value, preset="paper"),
        lambda: prunecomp.score(small.folder, small.windows, progress=value),
        lambda: prunecomp.evaluate(small.folder, small.windows, progress=value),
        lambda: prunecomp.compare(small.folder, [1], small.windows, eval=small.windows, progress=value),
        lambda: prunecomp.pruner_for(small.folder, small.windows, progress=value),
        lambda: result.save("nowhere", progress=value),
    ):
        with pytest.raises(OptionError, match="progress"):
            call()


def test_a_list_without_end_is_not_read(memory_model: Any) -> None:
    model, tokens = memory_model
    with pytest.raises(OptionError, match="arms: more than 10,000 entries"):
        prunecomp.compare(model, [1], tokens, eval=tokens, arms=range(10**12))
