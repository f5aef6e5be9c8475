"""From a checkpoint to llama.cpp's logits, by the converter and the library of one version."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from llama_cpp import GGML_TYPE_F32, Llama

CONVERT = Path(__file__).parent / "convert.py"


@cache
def llama_cpp(folder: Path = Path(sys.prefix)) -> Path:
    """llama.cpp as it is in the sdist of the llama-cpp-python that is installed, fetched once into ``folder``."""
    name = f"llama_cpp_python-{version('llama-cpp-python')}"
    if not (folder / name).exists():
        wanted = f"llama-cpp-python=={version('llama-cpp-python')}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
        subprocess.run([*command, "--dest", str(folder), wanted], check=True)
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder / name / "vendor" / "llama.cpp"


def convert(checkpoint: Path, file: Path, *options: str) -> None:
    """Write ``file``, in float32; ``options`` are those of convert.py."""
    command = [sys.executable, str(CONVERT), str(llama_cpp()), *options, str(checkpoint), "--outtype", "f32"]
    done = subprocess.run([*command, "--outfile", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"convert_hf_to_gguf: {done.stderr[-800:]}")


def open_gguf(file: Path, seqlen: int) -> Llama:
    # Keys and values in float16, the default, would be most of the difference of the logits.
    return Llama(
        str(file), n_ctx=seqlen, n_batch=seqlen, logits_all=True, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32,
        n_threads=torch.get_num_threads(), n_threads_batch=torch.get_num_threads(), verbose=False,
    )  # fmt: skip


def gguf_logits(model: Llama, windows: torch.Tensor) -> torch.Tensor:
    """[N, S, V] of windows [N, S] that stand alone."""
    rows = []
    for ids in windows.tolist():
        model.reset()
        model.eval(ids)
        rows.append(torch.from_numpy(model.scores[: len(ids)].copy()))
    return torch.stack(rows)
