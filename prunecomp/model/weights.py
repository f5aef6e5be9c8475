"""Checkpoints on disk: which tensors they hold, read one at a time, checked before they are trusted."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import nn

from prunecomp.errors import CheckpointError
from prunecomp.model.files import INDEX, is_index, is_safe, read_index, weights_file


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


class _Files:
    """Tensors, by name, in files of a folder."""

    folder: Path
    _place: dict[str, str]
    """The file of each."""

    def files(self) -> list[Path]:
        """The files that the tensors are in."""
        return [self.folder / file for file in sorted(set(self._place.values()))]

    def names(self) -> list[str]:
        return list(self._place)

    def location(self, name: str) -> Path:
        return self.folder / self._place[name]


class SafetensorsCheckpoint(_Files):
    """A folder of safetensors files, one or sharded; memory-mapped, so that only what is read is loaded.

    Raises :class:`CheckpointError` on opening when a file is missing or damaged, when the index names a file outside
    the folder, or when a shard lacks a tensor that the index places in it, or another one holds that tensor too.
    """

    def __init__(self, folder: Path, file: str | None = None) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()
        self._file = file = file or weights_file(folder)
        self._place = dict.fromkeys([] if is_index(file) else self._open(file).keys(), file)
        self.unnamed: dict[str, str] = {}
        """Tensors that lie in a shard and are not in the index, with the name of the shard."""
        if is_index(file):
            self._follow(file, read_index(folder / file))

    def __reduce__(self) -> tuple[type[SafetensorsCheckpoint], tuple[Path, str]]:
        return SafetensorsCheckpoint, (self.folder, self._file)  # open files cannot be copied, nor sent to a process

    def _follow(self, index: str, entries: dict[str, str]) -> None:
        for name, file in entries.items():
            if name not in set(self._open(file, index).keys()):
                raise CheckpointError(f"{self.folder / file} has no tensor {name!r}, though {index} places it there")
        for file in sorted(set(entries.values())):
            for name in self._open(file, index).keys():  # noqa: SIM118 - no mapping
                if entries.get(name, file) != file:
                    raise CheckpointError(
                        f"{self.folder / file} holds {name!r}, which {index} places in {entries[name]}: one of the "
                        "two is left over. Remove it, or write the checkpoint anew"
                    )
                if name not in entries:
                    self.unnamed[name] = file
        self._place = entries

    def _open(self, file: str, index: str = INDEX) -> Any:
        if file not in self._files:
            path = self.folder / file
            if not path.is_file():
                raise CheckpointError(f"{path} is missing, though {index} names it: is the download complete?")
            try:
                with open(path, "rb"):  # the reader below has one word for all that keeps it from a file
                    pass
                self._files[file] = self._stack.enter_context(safe_open(str(path), framework="pt"))
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read ({error})") from error
            except Exception as error:  # the reader's own error, and those of what a header can hold
                raise CheckpointError(f"{path} is damaged or cut short ({error}): fetch it again") from error
        return self._files[file]

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
        return math.prod(self.shape(name)) * self.dtype(name).itemsize


class PickleCheckpoint(_Files):
    """``pytorch_model.bin``, single or sharded, read with ``weights_only=True``; opened only when the user asks."""

    unnamed: Mapping[str, str] = {}

    def __init__(self, folder: Path, file: str) -> None:
        self.folder = folder
        self._tensors: dict[str, torch.Tensor] = {}
        self._place: dict[str, str] = {}
        entries = read_index(folder / file) if is_index(file) else {}
        for part in sorted(set(entries.values())) or [file]:
            tensors = _read_pickle(folder / part)
            self._tensors.update(tensors)
            self._place.update(dict.fromkeys(tensors, part))
        self._storages = _storages(self._tensors)
        for name in entries:
            if name not in self._tensors:
                raise CheckpointError(f"{folder / file} names {name!r}, which none of its files holds")

    def read(self, name: str) -> torch.Tensor:
        return _unshared(self._tensors[name], self._storages)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def is_floating_point(self, name: str) -> bool:
        return self._tensors[name].is_floating_point()

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes


def _storages(tensors: Mapping[str, torch.Tensor]) -> Counter[int]:
    """How many of some tensors lie in each storage."""
    return Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())


def _unshared(tensor: torch.Tensor, storages: Counter[int]) -> torch.Tensor:
    """``tensor`` with memory of its own: safetensors writes no two views of one, as of a tied head."""
    return tensor.clone() if storages[tensor.untyped_storage().data_ptr()] > 1 else tensor


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, though the index names it: is the download complete?")
    try:  # files of before PyTorch 1.6 are no archives, and cannot be mapped
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch.load raises several unrelated classes for a bad file
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} cannot be read as a tensor-only pickle ({reason})") from error
    if not isinstance(held, Mapping):
        raise CheckpointError(f"{path} holds a {type(held).__name__}, where tensors by their names belong")
    for name, tensor in held.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{path}: the entry {name!r} is a {type(tensor).__name__} and no tensor: a state_dict belongs here, "
                "and not the whole of a training's state"
            )
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(f"{path}: {name} is no plain tensor, but sparse, quantised or without values")
    return dict(held)


Checkpoint = SafetensorsCheckpoint | PickleCheckpoint


class ModuleTensors:
    """The tensors of a model in memory as a source; a tensor that is shared is listed under its first name."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors = dict(self._once(module))
        self._storages = _storages(self._tensors)

    @staticmethod
    def _once(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        seen: set[int] = set()
        for name, tensor in module.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor.detach()

    def names(self) -> list[str]:
        return list(self._tensors)

    def read(self, name: str) -> torch.Tensor:
        return _unshared(self._tensors[name], self._storages).cpu()

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes


PIECE = 2**26
"""Bytes that one thread digests at a time."""


def fingerprint(checkpoint: Checkpoint) -> str:
    """A digest that tells checkpoints apart wherever they lie: of the config, and of every byte of the weights.

    All of them are read to be run anyway. Times of change would not do: copies have others, and a file can change and
    keep its own.
    """
    digest = hashlib.sha256((checkpoint.folder / "config.json").read_bytes())
    pieces = [(file, start) for file in checkpoint.files() for start in range(0, file.stat().st_size, PIECE)]
    with ThreadPoolExecutor() as threads:
        for (file, start), part in zip(pieces, threads.map(_digest, pieces), strict=True):
            digest.update(f"{file.name}:{start}:".encode() + part)
    return digest.hexdigest()


def _digest(piece: tuple[Path, int]) -> bytes:
    file, start = piece
    digest = hashlib.sha256()
    with open(file, "rb") as data:
        data.seek(start)
        for _ in range(0, PIECE, 2**20):
            digest.update(data.read(2**20))
    return digest.digest()


TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


def open_checkpoint(folder: Path, allow_pickle: bool = False) -> Checkpoint:
    """Open the weights of a folder that transformers would load; pickles only where the caller allows them."""
    file = weights_file(folder, allow_pickle)
    return SafetensorsCheckpoint(folder, file) if is_safe(file) else PickleCheckpoint(folder, file)


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether ``tensor``, of floating point, holds neither NaN nor infinity: from its extremes, which are NaN where any
    value is, in one read and with nothing written (``isfinite`` writes a mask, and on a CPU takes 10 to 20 times as
    long, see ``benchmarks/bench_checks.py``)."""
    if not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:  # float8 has no order
        tensor = tensor.to(torch.bfloat16)
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of dtype, shape and bytes. Bytes and not values: NaN payloads and negative zeros count."""
    digest = hashlib.sha256(f"{tensor.dtype}:{list(tensor.shape)}:".encode())
    flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest.update(flat)
    return digest.hexdigest()
