"""Lengths and numbers of windows that cannot be meant are refused by every function that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import prunecomp
from prunecomp.data.windows import Windows
from prunecomp.errors import DataError, OptionError
from tests.situations.data import command, model, save

IDS = np.arange(400) % 97


@pytest.mark.parametrize("value", [1, 0, -5, 2.5, True, "16"])
def test_a_length_is_two_or_more(tmp_path: Path, value: Any) -> None:
    built = model()
    folder = save(built, tmp_path / "m")
    for call in (
        lambda: prunecomp.evaluate(built, IDS, seqlen=value),
        lambda: prunecomp.score(built, IDS, samples=2, seqlen=value),
        lambda: prunecomp.collect(built, IDS, samples=2, seqlen=value),
        lambda: prunecomp.prune(built, 1, IDS, samples=2, seqlen=value, preset="paper"),
        lambda: prunecomp.pruner_for(built, IDS, samples=2, seqlen=value),
        lambda: prunecomp.compare(built, [1], IDS, eval=IDS, samples=2, seqlen=value),
        lambda: prunecomp.plan(folder, 1, seqlen=value),
    ):
        with pytest.raises(OptionError, match=r"--seqlen .*: give (a whole number|at least 2)"):
            call()


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "16", None])
def test_a_number_of_windows_is_one_or_more(tmp_path: Path, value: Any) -> None:
    built = model()
    folder = save(built, tmp_path / "m")
    calls = [
        lambda: prunecomp.score(built, IDS, samples=value, seqlen=8),
        lambda: prunecomp.collect(built, IDS, samples=value, seqlen=8),
        lambda: prunecomp.prune(built, 1, IDS, samples=value, seqlen=8, preset="paper"),
        lambda: prunecomp.pruner_for(built, IDS, samples=value, seqlen=8),
        lambda: prunecomp.plan(folder, 1, samples=value),
    ]
    if value is not None:  # what compare takes for: the preset's, or 128
        calls.append(lambda: prunecomp.compare(built, [1], IDS, eval=IDS, samples=value, seqlen=8))
    for call in calls:
        with pytest.raises(OptionError, match=r"--samples .*: give (a whole number|at least 1)"):
            call()


@pytest.mark.parametrize("samples", [10**8, 10**12])
def test_more_windows_than_a_source_can_give_are_refused_at_once(tmp_path: Path, samples: int) -> None:
    folder = save(model(), tmp_path / "m")
    np.save(tmp_path / "ids.npy", IDS)
    result = command("score", folder, "--calibration", tmp_path / "ids.npy", "--samples", samples, "--seqlen", 8)
    assert result.exit_code == 2
    assert "gives 400 tokens, which make 50 windows of 8 that do not overlap, and 393 that differ" in result.stderr


def test_more_windows_than_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prunecomp.pruning.inputs, "free_host_memory", lambda: 8 * 8 * 20)
    with pytest.raises(OptionError, match="take 8,192 bytes, and 1,280 are free: give at most --samples 10"):
        prunecomp.score(model(), IDS, samples=128, seqlen=8)
    prunecomp.score(model(), IDS, samples=10, seqlen=8)


@pytest.mark.parametrize(
    "source", [None, 5, object(), {"input_ids": [1, 2]}, [[1, 2], [3]], [], [[]], b"words", "", ["a", "b"], [2**70, 1],
               np.zeros((3, 3)), np.array([None, 1]), np.zeros((2, 0), int), np.zeros((2, 2, 2), int), [True, False],
               np.zeros((3, 1), int), np.zeros(9, "timedelta64[s]")],
)  # fmt: skip
def test_what_holds_no_token_ids_is_refused(source: Any) -> None:
    with pytest.raises(DataError):
        prunecomp.score(model(), source, samples=2, seqlen=8)
    with pytest.raises(OptionError if source is None else DataError) as refused:
        prunecomp.evaluate(model(), source, seqlen=8)
    assert "calibration" not in str(refused.value)
    assert "--samples" not in str(refused.value)


def test_a_row_of_ids_is_one_window_of_a_loss() -> None:
    pruner = prunecomp.pruner_for(model(), IDS, samples=2, seqlen=8)
    assert pruner.loss(IDS[:60]) == pruner.loss(IDS[:60][None])
    with pytest.raises(OptionError, match="400 token ids in a row are one window, and the model was trained for 64"):
        pruner.loss(IDS)
    with pytest.raises(DataError, match="from 0 to 9999, the vocabulary"):
        pruner.loss(Windows(torch.tensor([[0, 9999]]), "windows"))
    for ids, message in ((IDS[:1], "hold nothing to run"), ([], "no token ids"), ("a.npy", "not a path"), (5, "int")):
        with pytest.raises(DataError, match=message):
            pruner.loss(ids)


def test_tokens_that_are_all_the_same_are_scored() -> None:
    scores = prunecomp.score(model(), np.full((3, 9), 7)).scores
    assert all(np.isfinite(list(scores.values())))


def test_a_masked_array_is_not_read_as_if_it_were_whole() -> None:
    masked = np.ma.masked_equal(np.arange(64).reshape(4, 16), 7)
    with pytest.raises(DataError, match="a masked array cannot be read as token ids: give rows with negative ids"):
        prunecomp.score(model(), masked)
