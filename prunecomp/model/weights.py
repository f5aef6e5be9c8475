"""Checkpoints on disk: which tensors they hold, read one at a time, checked before they are trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from prunecomp.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("pytorch_model.bin.index.json", "pytorch_model.bin")


class TensorSource(Protocol):
    """Named tensors that can be read one at a time."""

    def names(self) -> list[str]: ...

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU, in the dtype it is stored in. Not to be written to: it may be a view of a file."""
        ...

    def nbytes(self, name: str) -> int: ...


class StoredTensors(TensorSource, Protocol):
    """The tensors of a checkpoint folder, about which more can be asked without reading them."""

    folder: Path

    def location(self, name: str) -> Path: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def is_floating_point(self, name: str) -> bool: ...

    def dtype(self, name: str) -> torch.dtype: ...


class SafetensorsCheckpoint:
    """A folder of safetensors files, one or sharded; memory-mapped, so that only what is read is loaded.

    Raises :class:`CheckpointError` on opening when a file is missing or damaged, when the index names a file outside
    the folder, or when a shard lacks a tensor that the index places in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._place: dict[str, str] = {}
        self._stack = ExitStack()
        if (folder / INDEX).is_file():
            for name, file in self._read_index(folder / INDEX).items():
                if name not in set(self._open(file).keys()):
                    raise CheckpointError(f"{folder / file} has no tensor {name!r}, though {INDEX} places it there")
                self._place[name] = file
        elif (folder / SINGLE).is_file():
            self._place = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        else:
            raise CheckpointError(self._explain_absence())

    def _explain_absence(self) -> str:
        if any((self.folder / name).exists() for name in PICKLES):
            return (
                f"{self.folder} holds a pickle checkpoint ({PICKLES[1]}), which can run code when it is "
                "read. Convert it to safetensors, or pass --allow-pickle to read it with weights_only=True."
            )
        return f"{self.folder} has neither {SINGLE} nor {INDEX}: no weights to read"

    def _read_index(self, path: Path) -> dict[str, str]:
        try:
            weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            entries = {str(name): str(file) for name, file in weight_map.items()}
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a safetensors index: no readable 'weight_map' ({error})") from error
        for name, file in entries.items():
            if Path(file).name != file or file in ("", ".", ".."):
                raise CheckpointError(f"{path} places {name!r} in {file!r}: a shard must lie in the folder itself")
        return entries

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self.folder / file
            if not path.is_file():
                raise CheckpointError(f"{path} is missing, though {INDEX} names it: is the download complete?")
            try:
                self._files[file] = self._stack.enter_context(safe_open(str(path), framework="pt"))
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(f"{path} is damaged or cut short ({error}): fetch it again") from error
        return self._files[file]

    def names(self) -> list[str]:
        return list(self._place)

    def location(self, name: str) -> Path:
        return self.folder / self._place[name]

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._open(self._place[name]).get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open(self._place[name]).get_slice(name).get_shape())

    def is_floating_point(self, name: str) -> bool:
        return str(self._open(self._place[name]).get_slice(name).get_dtype()).lstrip("B").startswith("F")

    def dtype(self, name: str) -> torch.dtype:
        stored = self._open(self._place[name]).get_slice(name).get_dtype()
        if stored not in TORCH_DTYPES:
            raise CheckpointError(f"{self.location(name)}: {name!r} has dtype {stored}, which is not supported")
        return TORCH_DTYPES[stored]

    def nbytes(self, name: str) -> int:
        part = self._open(self._place[name]).get_slice(name)
        size = DTYPE_BYTES.get(part.get_dtype())
        if size is None:
            raise CheckpointError(
                f"{self.location(name)}: {name!r} has dtype {part.get_dtype()}, which is not supported"
            )
        for extent in part.get_shape():
            size *= extent
        return size


class PickleCheckpoint:
    """``pytorch_model.bin``, single or sharded, read with ``weights_only=True``; opened only when the user asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / PICKLES[0]).is_file():
            weight_map = json.loads((folder / PICKLES[0]).read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(weight_map.values()))
        else:
            files = [PICKLES[1]]
        self._tensors: dict[str, torch.Tensor] = {}
        for file in files:
            path = folder / file
            if Path(file).name != file or not path.is_file():
                raise CheckpointError(f"{path} is missing or outside the folder")
            try:
                self._tensors.update(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
            except Exception as error:  # torch.load raises several unrelated classes for a bad file
                raise CheckpointError(f"{path} cannot be read as a tensor-only pickle ({error})") from error

    def names(self) -> list[str]:
        return list(self._tensors)

    def location(self, name: str) -> Path:
        return self.folder

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def is_floating_point(self, name: str) -> bool:
        return self._tensors[name].is_floating_point()

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes


Checkpoint = SafetensorsCheckpoint | PickleCheckpoint


class ModuleTensors:
    """The tensors of a model in memory as a source; a tensor that is shared is listed under its first name."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors = dict(self._unshared(module))

    @staticmethod
    def _unshared(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        seen: set[int] = set()
        for name, tensor in module.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor.detach()

    def names(self) -> list[str]:
        return list(self._tensors)

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name].cpu()

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes


SAMPLES = 64
SAMPLE_BYTES = 4096


def fingerprint(folder: Path) -> str:
    """A digest that tells checkpoints apart without reading all of them: of the config, and of every weight file its
    name, size, header and 64 evenly spaced samples of 4 KiB."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with open(file, "rb") as data:
            header = int.from_bytes(data.read(8), "little") if file.suffix == ".safetensors" else 0
            digest.update(data.read(min(header, size)))
            for i in range(SAMPLES):
                data.seek(i * max(size - SAMPLE_BYTES, 0) // SAMPLES)
                digest.update(data.read(SAMPLE_BYTES))
    return digest.hexdigest()


DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


def open_checkpoint(folder: Path, allow_pickle: bool = False) -> Checkpoint:
    """Open a checkpoint folder; pickles only where there are no safetensors and the caller allows them."""
    safe = (folder / INDEX).is_file() or (folder / SINGLE).is_file()
    if not safe and allow_pickle and any((folder / name).is_file() for name in PICKLES):
        return PickleCheckpoint(folder)
    return SafetensorsCheckpoint(folder)
