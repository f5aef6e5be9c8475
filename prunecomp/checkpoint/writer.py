"""Writing a pruned checkpoint: tensor by tensor, beside the target, and only whole."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from prunecomp.checkpoint.claim import check_place, claimed, locked, placed, sync, sync_name
from prunecomp.checkpoint.fold import FoldPlan
from prunecomp.engine.progress import Progress, silent
from prunecomp.errors import OutputError
from prunecomp.io.plain import write_json
from prunecomp.model.files import INDEX, SINGLE
from prunecomp.model.weights import TensorSource, tensor_digest

DEFAULT_SHARD_BYTES = 5 * 10**9


def check_output(out: Path, overwrite: bool = False, base: str | None = None) -> None:
    """Raise :class:`OutputError` unless ``out`` can become a new folder, or with ``overwrite`` take the place of a
    checkpoint that is not the ``base``. Called before any work is done."""
    check_place(out)
    if out.is_symlink():
        raise OutputError(f"{out} is a link to {os.readlink(out)}: choose another --out")
    filled = out.is_dir() and any(out.iterdir())
    if out.exists() and (not out.is_dir() or (filled and not overwrite)):
        remedy = ", or replace it with --force (overwrite=True)" if filled and _is_checkpoint(out) else ""
        raise OutputError(f"{out} exists and is not an empty folder: choose another --out, or remove it{remedy}")
    if filled and not _is_checkpoint(out):
        raise OutputError(f"{out} holds something else than a checkpoint, and is not replaced: choose another --out")
    if filled and base is not None and Path(base).exists() and out.resolve() in (r := Path(base).resolve(), *r.parents):
        raise OutputError(f"{out} holds the model that is pruned, and is not replaced: choose another --out")
    if out.exists() and (os.path.ismount(out) or out.samefile(os.curdir)):
        raise OutputError(
            f"{out} is the current folder, or one where a file system is mounted, and cannot be replaced: choose a "
            "folder within it as --out"
        )


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file()


@contextmanager
def atomic_folder(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill beside ``out``, which becomes ``out`` on success and is gone on failure; what is there already
    stays until then, and goes with ``overwrite``.

    A process that is killed leaves only the hidden folder, which the next run to the same place removes.
    """
    out = placed(out)
    partial = out.with_name(f".{out.name}.{secrets.token_hex(8)}.partial")
    with claimed(out) as made:
        try:
            made.clear()  # folders that were written to stay
            remove_leftovers(out)
            partial.mkdir()
            with _open_folder(partial) as descriptor:
                locked(descriptor)
                yield partial
                for path in [*partial.rglob("*"), partial]:
                    sync(path)
                _take_place(partial, out, overwrite)
            sync_name(out)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{out} could not be written ({error}); nothing was left there") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _take_place(partial: Path, out: Path, overwrite: bool) -> None:
    """An empty folder there is replaced, one that was filled meanwhile is not."""
    if not (overwrite and out.is_dir() and any(out.iterdir())):
        partial.rename(out)
        return
    former = out.with_name(f".{out.name}.{secrets.token_hex(8)}.partial")  # removed by the next run if by nobody else
    out.rename(former)
    try:
        partial.rename(out)
    except BaseException:
        former.rename(out)
        raise
    shutil.rmtree(former, ignore_errors=True)


def remove_leftovers(out: Path) -> None:
    """Remove what processes that were killed have left beside ``out``; living ones hold a lock on theirs, and where
    there are no locks all stays."""
    leftover = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{16}}\.partial")
    with suppress(OSError):  # a courtesy: where it cannot be done, nothing depends on it
        for entry in [each for each in os.scandir(out.parent) if leftover.fullmatch(each.name)]:
            with _open_folder(Path(entry.path)) as descriptor:
                if locked(descriptor, without=False):
                    shutil.rmtree(entry.path, ignore_errors=True)


@contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def renamed(name: str, layers: str, renumber: dict[int, int]) -> str | None:
    """A tensor's name after pruning, or None if its layer is gone; ``layers`` is the path of the layers."""
    match = re.match(rf"{re.escape(layers)}\.(\d+)\.", name)
    if match is None:
        return name
    number = renumber.get(int(match.group(1)))
    return None if number is None else f"{layers}.{number}.{name[match.end() :]}"


def plan_shards(
    source: TensorSource, layers: str, renumber: dict[int, int], shard_bytes: int
) -> list[list[tuple[str, str]]]:
    """Shards of (old name, new name), filled in order up to ``shard_bytes``; a larger tensor has one to itself."""
    shards: list[list[tuple[str, str]]] = [[]]
    filled = 0
    for old in source.names():
        new = renamed(old, layers, renumber)
        if new is None:
            continue
        size = source.nbytes(old)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((old, new))
        filled += size
    return shards


def write_tensors(
    folder: Path,
    source: TensorSource,
    layers: str,
    plan: FoldPlan,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress = silent,
    digests: dict[str, str] | None = None,
) -> None:
    """Write the surviving tensors, folded where the plan says so, one shard in memory at a time.

    Names are those of the files: of the plan, and of the path of the ``layers``.

    ``digests``, if given, takes what each tensor was meant to be, by its new name: taken here and not from the file, so
    that reading the file back tells whether it is so.
    """
    shards = plan_shards(source, layers, plan.renumber, shard_bytes)
    total = sum(source.nbytes(old) for shard in shards for old, _ in shard)
    space = shutil.disk_usage(folder)
    if total > space.free and space.total:  # nothing in all: a file system that does not know
        raise OutputError(f"{folder.parent} has {space.free:,} bytes free, the checkpoint needs {total:,}")
    weight_map: dict[str, str] = {}
    with progress("writing", total, "bytes") as advance, ThreadPoolExecutor() as threads:
        for number, shard in enumerate(shards, start=1):
            file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors: dict[str, torch.Tensor] = {}
            for old, new in shard:
                tensor = source.read(old)
                tensors[new] = plan.folded(old, tensor) if plan.changes(old) else tensor.contiguous()
                weight_map[new] = file
                advance(tensor.nbytes)
            if digests is not None:  # each byte takes a core as long as a fast disk
                digests |= zip(tensors, threads.map(tensor_digest, tensors.values()), strict=True)
            save_file(tensors, folder / file, metadata={"format": "pt"})
            with suppress(OSError):  # there are file systems without modes
                (folder / file).chmod(0o644)  # safetensors makes its files private to the user
    if len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
