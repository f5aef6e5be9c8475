"""GGUF files as an input: read and dequantised by transformers, kept as an ordinary checkpoint in the user's cache."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prunecomp.errors import CheckpointError, PrunecompWarning
from prunecomp.model.families import families

SUFFIX = ".gguf"
DEFAULT_DTYPE = torch.bfloat16
"""What a GGUF is dequantised to where no dtype is asked for: its own formats have no counterpart in safetensors."""


def gguf_of(path: Path) -> Path | None:
    """The GGUF that ``path`` means: itself, or the one in a folder that has no other checkpoint. None if there is none.

    Raises :class:`CheckpointError` for a folder with several, and for one of several parts of a file.
    """
    if path.is_file() and path.suffix == SUFFIX:
        found = [path]
    elif path.is_dir() and not (path / "config.json").exists():
        found = sorted(path.glob(f"*{SUFFIX}"))
    else:
        found = []
    if len(found) > 1:
        raise CheckpointError(f"{path} holds {len(found)} GGUF files: give one of them, as in {found[0]}")
    if found and "-of-" in found[0].stem:
        raise CheckpointError(f"{found[0]} is one of several parts: join them first (llama-gguf-split --merge)")
    return found[0] if found else None


def gguf_types(file: Path) -> str:
    """Which formats the tensors of a GGUF are stored in, the one that holds most of the values first.

    Raises :class:`CheckpointError` for a file that is none, or is cut short, with the byte at which something is
    missing.
    """
    values: Counter[str] = Counter()
    for kind, count in read_header(file)[0]:
        values[kind] += count
    return ", ".join(name for name, _ in values.most_common())


def checkpoint_of_gguf(file: Path, dtype: torch.dtype | None) -> Path:
    """The folder of the same model as safetensors in ``dtype``, dequantised as transformers does it.

    It lies in the user's cache and is made once for a file; a file that changes gets a new one. Raises
    :class:`CheckpointError` for a file that is damaged, or of an architecture that transformers or this package does
    not know.
    """
    dtype = dtype or DEFAULT_DTYPE
    folder = _cache() / _key(file, dtype)
    if not (folder / "config.json").is_file():
        dequantise(file, dtype, folder)
        warnings.warn(
            f"{file} was dequantised to {str(dtype).removeprefix('torch.')} in {folder}, which later runs read again; "
            "it can be removed at any time",
            PrunecompWarning,
            stacklevel=2,
        )
    return folder


def dequantise(file: Path, dtype: torch.dtype, folder: Path) -> None:
    """Write the model of a GGUF as an ordinary checkpoint to the new ``folder``, whole or not at all.

    Raises :class:`CheckpointError`.
    """
    _, has_tokenizer = read_header(file)
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        config = AutoConfig.from_pretrained(**where)
    except (ValueError, KeyError, OSError, IndexError, NotImplementedError) as error:
        raise CheckpointError(f"{file}: transformers does not read this GGUF: {error}") from error
    families.find(config.model_type)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # since 5.20 or so blocks stay packed unless told otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, **options)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(partial)
        if has_tokenizer:
            AutoTokenizer.from_pretrained(**where).save_pretrained(partial)
        if not (folder / "config.json").is_file():  # another process may have been quicker
            os.rename(partial, folder)
    except ImportError as error:
        raise CheckpointError(f"{file}: to read GGUF, pip install 'prunecomp[gguf]' ({error})") from error
    except (ValueError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{file} could not be dequantised to {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_header(file: Path) -> tuple[list[tuple[str, int]], bool]:
    """The format of each tensor and the number of its values; and whether a tokenizer is there.

    Raises :class:`CheckpointError` for a file that is no GGUF, or does not hold all that it announces."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
    except ImportError as error:
        raise CheckpointError(f"{file}: to read GGUF, pip install 'prunecomp[gguf]'") from error

    class Announced(GGUFReader):
        """Without views of the data, which end in an error that names no place where the file is cut short."""

        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            self.data_start, self.announced = start_offs, fields

    size = file.stat().st_size
    try:
        header = Announced(file)
    except (ValueError, KeyError, IndexError, OverflowError, OSError) as error:
        raise CheckpointError(
            f"{file} is no GGUF, or its header is damaged or ends before byte {size:,}, where the file does ({error})"
        ) from error
    tensors = []
    for field in header.announced:
        _, name, _, extents, stored, offset = field.parts
        count, kind = math.prod(int(extent) for extent in extents), GGMLQuantizationType(int(stored[0]))
        block, nbytes = GGML_QUANT_SIZES[kind]
        end = header.data_start + int(offset[0]) + count // block * nbytes
        tensors.append((kind.name, count))
        if end > size:
            named = bytes(name).decode("utf-8", "replace")
            raise CheckpointError(f"{file} is cut short: {named} ends at byte {end:,}, the file at {size:,}")
    return tensors, "tokenizer.ggml.model" in header.fields


def _key(file: Path, dtype: torch.dtype) -> str:
    state = file.stat()
    parts = (file.resolve(), state.st_size, state.st_mtime_ns, dtype, transformers.__version__)
    return f"{file.stem}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "prunecomp" / "gguf"
