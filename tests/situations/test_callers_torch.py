"""What the caller has set of PyTorch: numbers do not depend on it, and it stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import prunecomp
from tests.situations.folders import TOKENS, folder_of


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


WITHIN: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "another device by default": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}


def numbers(folder: Path) -> list[Any]:
    """Of all that rests on floating point, gradients among it."""
    options: dict[str, Any] = {"dtype": "float32", "compile": "off"}
    result = prunecomp.prune(folder, 2, TOKENS, eval=TOKENS[:2], repair="auto", **options)
    taylor = prunecomp.score(folder, TOKENS, metric="taylor", **options)
    assert result.quality[1].agreement is not None
    found = prunecomp.collect(folder, TOKENS, dtype="float32")
    return [
        result.removed, result.perplexity, result.quality[1].agreement.kl.value, result.repair and result.repair.losses,
        taylor.scores, prunecomp.evaluate(folder, TOKENS, dtype="float32"), found.record(),
    ]  # fmt: skip


@pytest.mark.parametrize("way", WITHIN)
def test_numbers_are_the_same_whatever_is_set(way: str, tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "model")
    expected = numbers(folder)
    with WITHIN[way]():
        before = torch.get_default_dtype(), torch.empty(0).device, torch.is_inference_mode_enabled()
        assert numbers(folder) == expected
        assert (torch.get_default_dtype(), torch.empty(0).device, torch.is_inference_mode_enabled()) == before


def test_the_callers_generator_is_left_alone(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "model")
    before = torch.get_rng_state()
    prunecomp.plan(folder, 2)
    prunecomp.prune(folder, 2, TOKENS, preset="paper", metric="random")
    assert torch.equal(torch.get_rng_state(), before)
