"""A small checkpoint folder to be spoilt, and what there is to spoil it with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.models import build

TOKENS = torch.randint(0, 101, (3, 16), generator=torch.Generator().manual_seed(0))


def folder_of(case: str, folder: Path, save: dict[str, Any] | None = None, **overrides: Any) -> Path:
    """A model of ``tests.models``, drawn from a fixed seed, saved by transformers."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        build(case, **overrides).save_pretrained(folder, **(save or {}))
    return folder


def edit_json(path: Path, **fields: Any) -> None:
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**held, **fields}))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def theirs(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=TOKENS).logits
    return out
