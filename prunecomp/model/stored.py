"""Checkpoints whose files call tensors otherwise than the model does: one tensor an expert, say, for a fused one."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch

from prunecomp.errors import CheckpointError
from prunecomp.model.adapter import Family
from prunecomp.model.weights import StoredTensors, TensorSource


@dataclass
class Parts:
    """Where one of the model's tensors is stored: in one tensor, or in several lists, one tensor an expert, of which
    each is stacked and the results joined along their rows."""

    stacked: bool
    columns: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))

    def lists(self) -> list[list[str]]:
        return [[self.columns[c][expert] for expert in sorted(self.columns[c])] for c in sorted(self.columns)]

    def names(self) -> list[str]:
        return [name for names in self.lists() for name in names]


class RenamedCheckpoint:
    """A checkpoint under the names its model has, each fused tensor put together when it is read."""

    def __init__(self, checkpoint: StoredTensors, parts: dict[str, Parts]) -> None:
        self.folder: Path = checkpoint.folder
        self._checkpoint = checkpoint
        self._parts = parts

    def names(self) -> list[str]:
        replaced = {name for part in self._parts.values() for name in part.names()}
        return [name for name in self._checkpoint.names() if name not in replaced] + list(self._parts)

    def location(self, name: str) -> Path:
        return self._checkpoint.location(self._stored(name)[0])

    def read(self, name: str) -> torch.Tensor:
        """See :class:`TensorSource`."""
        if name in self._parts and self._parts[name].stacked:
            return self._fused(name)
        return self._checkpoint.read(self._stored(name)[0])

    def _fused(self, name: str) -> torch.Tensor:
        """Put together in place: experts can be most of a model, and a second copy of them too much."""
        fused = torch.empty(0)
        row = 0
        for names in self._parts[name].lists():
            for expert, part in enumerate(names):
                tensor = self._checkpoint.read(part)
                if not len(fused):
                    fused = torch.empty(self.shape(name), dtype=tensor.dtype)
                fused[expert, row : row + len(tensor)] = tensor
            row += len(tensor)
        return fused

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises :class:`CheckpointError` where experts are missing or differ in shape."""
        if name not in self._parts or not self._parts[name].stacked:
            return self._checkpoint.shape(self._stored(name)[0])
        shapes = [[self._checkpoint.shape(part) for part in names] for names in self._parts[name].lists()]
        if len({len(column) for column in shapes}) > 1 or any(len(set(column)) > 1 for column in shapes):
            raise CheckpointError(f"{self.location(name)}: the experts of {name} are not all there, or differ in shape")
        return (len(shapes[0]), sum(column[0][0] for column in shapes), *shapes[0][0][1:])

    def is_floating_point(self, name: str) -> bool:
        return all(self._checkpoint.is_floating_point(part) for part in self._stored(name))

    def dtype(self, name: str) -> torch.dtype:
        return self._checkpoint.dtype(self._stored(name)[0])

    def nbytes(self, name: str) -> int:
        return sum(self._checkpoint.nbytes(part) for part in self._stored(name))

    def stored(self, name: str) -> list[str]:
        """See :func:`stored_names`."""
        return [file for part in self._stored(name) for file in stored_names(self._checkpoint, part)]

    def _stored(self, name: str) -> list[str]:
        return self._parts[name].names() if name in self._parts else [name]


def stored_parts(source: TensorSource, family: Family) -> dict[str, Parts]:
    """For each tensor that the model has under another name than the ``source``, where it is stored.

    Of the stars in a stored pattern the first are those of the model's name; one more numbers the experts.
    """
    found: dict[str, Parts] = {}
    for target, templates in family.stored_as:
        stars = target.count("*")
        for column, template in enumerate(templates):
            pattern = re.compile(re.escape(template).replace(r"\*", r"(\d+)"))
            for name in source.names():
                match = pattern.fullmatch(name)
                if match is None:
                    continue
                numbers = match.groups()
                spelled = target.replace("*", "{}").format(*numbers[:stars])
                part = found.setdefault(spelled, Parts(stacked=len(numbers) > stars))
                part.columns[column][int(numbers[stars]) if part.stacked else 0] = name
    return found


def backbone_prefix(checkpoint: TensorSource, family: Family) -> str:
    """What the names of a backbone's tensors begin with: ``model.`` as a rule, nothing in files saved without a head,
    ``language_model.model.`` for the text decoder of a multimodal model. It is the embedding that is looked for.

    Raises :class:`CheckpointError` where there are several.
    """
    usual = _root(family)
    embedding, layers = (f"{path.removeprefix(usual)}." for path in (family.embeddings[0], family.layers))
    names = checkpoint.names()
    prefixes = {name.removesuffix(f"{embedding}weight") for name in names if name.endswith(f"{embedding}weight")}
    found = [
        prefix
        for prefix in sorted(prefixes)
        if (not prefix or prefix.endswith(".")) and any(name.startswith(prefix + layers) for name in names)
    ]
    if usual in found or not found:
        return usual
    if len(found) > 1:
        raise CheckpointError(f"several decoders have the names of {family.name}, under {', '.join(found)}: which one?")
    return found[0]


def _root(family: Family) -> str:
    return f"{family.layers.partition('.')[0]}."


def layers_path(checkpoint: TensorSource, family: Family) -> str:
    """The path of the layers in the names of a ``checkpoint``."""
    return backbone_prefix(checkpoint, family) + family.layers.removeprefix(_root(family))


def with_usual_prefix(checkpoint: StoredTensors, family: Family) -> StoredTensors:
    """The checkpoint with its decoder where the model has it; the same one where it stands there already."""
    usual, prefix = _root(family), backbone_prefix(checkpoint, family)
    if prefix == usual:
        return checkpoint
    heads = (f"{family.head}.", *(old for new, stored in family.stored_as if "*" not in new for old in stored))
    # A head that stands beside the decoder, inside of what holds both, has this part of the prefix alone.
    beside = prefix.removesuffix(usual) if prefix.endswith(f".{usual}") else None
    renamed = {}
    for name in checkpoint.names():
        if name.startswith(prefix) and not name.startswith(heads):
            renamed[usual + name.removeprefix(prefix)] = name
        elif beside is not None and name.startswith(beside):
            renamed[name.removeprefix(beside)] = name
    return RenamedCheckpoint(checkpoint, {new: Parts(False, {0: {0: old}}) for new, old in renamed.items()})


def under_model_names(plain: StoredTensors, family: Family) -> StoredTensors:
    """A checkpoint of ``plain`` (not quantised, or dequantised) weights as the model sees it; the same one where the
    names agree already."""
    checkpoint = with_usual_prefix(plain, family)
    parts = stored_parts(checkpoint, family)
    return RenamedCheckpoint(checkpoint, parts) if parts else checkpoint


def stored_names(checkpoint: StoredTensors, name: str) -> list[str]:
    """The plain tensors of the files that hold what ``checkpoint`` has as ``name``."""
    return checkpoint.stored(name) if isinstance(checkpoint, RenamedCheckpoint) else [name]
