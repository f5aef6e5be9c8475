"""The model source of whatever a caller names as a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunecomp.model.loader import resolve_model
from prunecomp.model.source.base import ModelSource
from prunecomp.model.source.folder import FolderSource
from prunecomp.model.source.in_memory import InMemorySource


def open_source(
    model: Any, *, dtype: str, device: str, tokenizer: Any, allow_pickle: bool, attention: str = "auto"
) -> ModelSource:
    """From a folder, a hub id or a model object, with everything checked but no weights loaded."""
    if isinstance(model, str | Path):
        folder = resolve_model(model, allow_pickle, dtype=dtype)
        return FolderSource(folder, str(model), dtype, device, allow_pickle, attention)
    return InMemorySource(model, tokenizer)
