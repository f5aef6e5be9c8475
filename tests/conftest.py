"""Small models of every family and data to run them on, drawn afresh for each test session from a printed seed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import CASES, build

REFERENCE_MODEL = Path(__file__).parent.parent / "examples" / "reference_model"
SEED = int(os.environ.get("PRUNECOMP_TEST_SEED", torch.seed() % 2**31))


def pytest_report_header() -> str:
    return f"PRUNECOMP_TEST_SEED={SEED}"


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """A generator that differs from test to test and from session to session."""
    return torch.Generator().manual_seed(SEED ^ (zlib.crc32(request.node.nodeid.encode())))


@pytest.fixture(params=sorted(CASES))
def model(request: pytest.FixtureRequest) -> Any:
    """A small random model in float32, once for each family and variant."""
    torch.manual_seed(SEED)
    return build(request.param)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any], Path]:
    """Save a model with transformers and give its folder."""

    def save(model: Any, **options: Any) -> Path:
        folder = tmp_path / "base"
        model.save_pretrained(folder, **options)
        return folder

    return save


@pytest.fixture(scope="session")
def reference_model() -> Path:
    return REFERENCE_MODEL
