"""The scalar that is searched for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.compensation.choice import SEARCH_RUNS, minimise
from tests.models import build, draw_tokens
from tests.oracles import iterative


@torch.no_grad()
def loss(model: Any, windows: torch.Tensor) -> float:
    """Mean over windows, in the model's dtype."""
    return sum(float(model(input_ids=t[None], labels=t[None], use_cache=False).loss) for t in windows) / len(windows)


