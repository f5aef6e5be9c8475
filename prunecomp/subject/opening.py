"""The subject of whatever a caller names as a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunecomp.model.loader import (
    resolve_model,
)
from prunecomp.subject.base import Subject
from prunecomp.subject.folder import FolderSubject
from prunecomp.subject.in_memory import ModelSubject


def open_subject(
    model: Any, *, dtype: str, device: str, tokenizer: Any, allow_pickle: bool, attention: str = "auto"
) -> Subject:
    """A :class:`Subject` from a folder, a hub id or a model object, with everything checked but no weights loaded."""
    if isinstance(model, str | Path):
        folder = resolve_model(model, allow_pickle, dtype=dtype)
        return FolderSubject(folder, str(model), dtype, device, allow_pickle, attention)
    return ModelSubject(model, tokenizer)
