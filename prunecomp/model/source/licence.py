"""The licence of a model, as the model itself states it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

from prunecomp.model.files import CARD

FIELDS = ("license", "license_name", "license_link")
FILES = ("LICENSE*", "LICENCE*", "COPYING*")


@dataclass(frozen=True)
class Licence:
    """What the base model says of its own: the fields of its card, or else the name of a file."""

    fields: dict[str, Any] = field(default_factory=dict)
    file: str | None = None

    def __str__(self) -> str:
        if self.fields:
            return ", ".join(str(value) for value in self.fields.values())
        return f"see {self.file}" if self.file else "not stated"


def read_licence(folder: Path) -> Licence:
    """From the front matter of a base model's card, or the name of its licence file. A card that cannot be read states
    nothing: it is no part of the model."""
    card = folder / CARD
    try:
        stated = (metadata_load(card) or {}) if card.is_file() else {}
    except Exception:  # YAML errors of a parser that is not ours to import, and whatever else a free text may cause
        stated = {}
    files = sorted(path.name for pattern in FILES for path in folder.glob(pattern))
    fields = {name: stated[name] for name in FIELDS if stated.get(name)} if "license" in stated else {}
    return Licence(fields, files[0] if files else None)
