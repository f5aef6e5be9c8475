"""A small model on disk, data for it, and the command line called in this process."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.command_line import Result
from tests.command_line import invoke as run
from tests.models import build


class Small(NamedTuple):
    """Files for a run of a fraction of a second."""

    folder: Path
    """A llama of 6 layers."""
    stream: Path
    """Token ids, [T]."""
    windows: Path
    """Token ids, [4, 16]."""


def small_model(root: Path) -> Small:
    torch.manual_seed(12)
    model = build("llama", hidden_size=16, intermediate_size=24, vocab_size=48, max_position_embeddings=64)
    model.save_pretrained(root / "model")
    tokens = np.random.default_rng(12).integers(0, 48, 400)
    np.save(root / "stream.npy", tokens)
    np.save(root / "windows.npy", tokens[:64].reshape(4, 16))
    return Small(root / "model", root / "stream.npy", root / "windows.npy")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_model(tmp_path_factory.mktemp("small"))


def invoke(*words: object) -> Result:
    return run(*words)


def said(result: Result) -> str:
    """What the command said, once it is sure that it ended by itself."""
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return " ".join(result.output.split())
