"""What lies beside the weights: all that belongs to the model goes along, and what does not is named."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from prunecomp.errors import CheckpointError, PrunecompWarning
from prunecomp.io.plain import read_json, read_object, write_json
from prunecomp.model.config import prune_generation, without_code
from prunecomp.model.files import GENERATION, WEIGHTS, is_index

OURS = ("config.json", "README.md", "prunecomp.json", "mergekit.yml", "report.html", "collected.json")
"""Written anew, or about the model as it was."""

LEFT_OUT = {
    "code, which is never run here": ("*.py", "*.pyc", "*.ipynb", "*.sh", "*.so", "__pycache__"),
    "of a training": (
        "trainer_state.json", "training_args*", "optimizer*", "scheduler*", "rng_state*", "*tfevents*", "runs", "wandb",
        "global_step*", "checkpoint-*", "latest", "*_results.json",
    ),
    "about the weights as they were": (
        "hf_quant_config.json", "quantize_config.json", "quant_config.json", "params.json", "mergekit_config.y*ml",
        "*imatrix*", "*.sha256",
    ),
    "pictures of the model card": ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.mp4", "*.pdf"),
    "data": ("*.csv", "*.jsonl", "*.parquet", "*.arrow", "*.log", "*.gz", "*.zip", "*.tar", "*.zst", "*.7z"),
    "a lock": ("*.lock", "*.partial", "*.incomplete", "*.tmp"),
}  # fmt: skip

TOKENIZERS = ("tokenizer*", "vocab.*", "*.model", "*.tiktoken", "tekken.json", "*.spm")
"""Files of which one at least is there where a tokenizer is."""

BESIDE_TOKENIZERS = ("merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
"""And what may belong to it."""

LARGEST = 10**9
"""Bytes of a file that is copied."""

LARGEST_LINKED = 10**8
"""Bytes of a file that a link out of the folder leads to; a tokenizer has a third of it."""


@dataclass(frozen=True)
class Companions:
    """Paths relative to the model's folder: what is copied, what is written with a change, what is left and why."""

    folder: Path
    copied: list[Path] = field(default_factory=list)
    edited: dict[Path, dict[str, Any]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def write(self, out: Path) -> None:
        """Write them beside the weights in ``out``, and warn of what is not there."""
        for path in self.copied:
            (out / path.parent).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / path, out / path)
        for path, content in self.edited.items():
            write_json(out / path, content)
        if self.left:
            told = (f"{name} ({why})" for name, why in sorted(self.left.items()))
            warnings.warn(f"not in the export: {', '.join(told)}", PrunecompWarning, stacklevel=2)


def find_companions(folder: Path, weights: Collection[str]) -> Companions:
    """What goes along from ``folder``, the ``weights`` in which are those of the model.

    Raises :class:`CheckpointError` for what cannot be read, before any work.
    """
    found = Companions(folder)
    try:
        whole = _parts(folder)
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.name in OURS or is_index(path.name):
                continue
            if path.is_dir():
                _folder(found, path, whole)
            elif path.suffix not in WEIGHTS:
                _file(found, path)
            elif path.name not in weights:
                found.left[path.name] = "weights that are not the model's"
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder} cannot be read ({error.strerror})") from error
    return found


def copy_tokenizer(parent: Path, out: Path) -> bool:
    """Copy the files of the tokenizer in ``parent``, as they are; whether there is one."""
    files = sorted(path for path in parent.iterdir() if path.is_file()) if parent.is_dir() else []
    if not any(fnmatch(path.name, pattern) for path in files for pattern in TOKENIZERS):
        return False
    for path in files:
        if any(fnmatch(path.name, pattern) for pattern in (*TOKENIZERS, *BESIDE_TOKENIZERS)):
            shutil.copyfile(path, out / path.name)
    return True


def _parts(folder: Path) -> set[str]:
    """Sub-folders that belong to the model, weights and all: those of a pipeline of sentence-transformers."""
    modules = folder / "modules.json"
    stated = read_json(modules, CheckpointError) if modules.is_file() else []
    entries = stated if isinstance(stated, list) else []
    return {str(entry.get("path")) for entry in entries if isinstance(entry, dict)}


def _folder(found: Companions, path: Path, whole: set[str]) -> None:
    why = _unwanted(path.name)
    if why is None and path.is_symlink():
        why = "a link to a folder"
    inside = [] if why else list(_files(path))
    if why is None and path.name not in whole and any(file.suffix in WEIGHTS for file in inside):
        why = "it holds weights of its own"
    if why is not None:
        found.left[f"{path.name}/"] = why
    for file in inside if why is None else []:
        _file(found, file)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _file(found: Companions, path: Path) -> None:
    relative = path.relative_to(found.folder)
    why = _unwanted(path.name) or _unreachable(path, found.folder)
    if why is not None:
        found.left[str(relative)] = why
        return
    with open(path, "rb"):  # a file that cannot be read is told of now
        pass
    if path.name == GENERATION or path.name.endswith("_config.json"):
        stated = read_object(path, CheckpointError)
        kept = without_code(stated, path.name)
        kept = prune_generation(kept) if path.name == GENERATION else kept
        if kept != stated:
            found.edited[relative] = kept
            return
    found.copied.append(relative)


def _unwanted(name: str) -> str | None:
    return next((why for why, patterns in LEFT_OUT.items() if any(fnmatch(name, p) for p in patterns)), None)


def _unreachable(path: Path, folder: Path) -> str | None:
    """Why a path is not followed to its file: what a link leads to outside of the folder may be anybody's.

    The files of a hub's cache are links to its ``blobs``, and folders are put together of links to files of one name.
    """
    if not path.exists():
        return "a link to nothing"
    target = path.resolve()
    if not target.is_file():
        return "no file"
    if target.stat().st_size > LARGEST:
        return f"more than {LARGEST:,} bytes"
    if target.is_relative_to(folder.resolve()) or target.parent.name == "blobs":
        return None
    hidden = any(part.startswith(".") for part in target.parts)
    if hidden or target.name != path.name or target.stat().st_size > LARGEST_LINKED:
        return "a link out of the folder"
    return None
