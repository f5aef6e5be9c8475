"""llama.cpp: an export becomes a GGUF file whose logits are those of transformers."""

from __future__ import annotations

import math
import subprocess
import sys
import tarfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import torch
from gguf import GGUFReader
from llama_cpp import GGML_TYPE_F32, Llama

from benchmarks.interop.exports import SEQLEN, Export, Exports, evaluation_text, load, logits, loss, tokenize, windows
from benchmarks.interop.report import Finding

CONVERT = Path(__file__).parent / "convert.py"
PECULIAR = (
    "\n \n\n  \t\t x   y\n   3 33 333 3333 3.3 3...3 I've 'told HE'S  a'lL "
    "\u00e9\u00e0\u00fc \u041d\u0435\u0449\u043e \U0001f980 ------=== !!??"
)
"""Where pre-tokenizers part: runs of blanks, digits, contractions, letters that are not ASCII."""
LOGITS, PERPLEXITY = 1e-3, 1e-5


def run(exports: Exports) -> list[Finding]:
    source = _llama_cpp(Path(sys.prefix))
    return [finding for export in exports.repaired for finding in _check(export, exports, source)]


def _llama_cpp(cache: Path) -> Path:
    """The folder of llama.cpp in the sdist of the llama-cpp-python that is installed, fetched once into ``cache``."""
    name = f"llama_cpp_python-{version('llama-cpp-python')}"
    if not (cache / name).exists():
        wanted = f"llama-cpp-python=={version('llama-cpp-python')}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
        subprocess.run([*command, "--dest", str(cache), wanted], check=True)
        with tarfile.open(cache / f"{name}.tar.gz") as archive:
            archive.extractall(cache, filter="data")
    return cache / name / "vendor" / "llama.cpp"


def _check(export: Export, exports: Exports, source: Path) -> list[Finding]:
    file = exports.work / f"{export.folder.name}.gguf"
    command = [
        sys.executable,
        str(CONVERT),
        str(source),
        str(export.folder),
        "--outfile",
        str(file),
        "--outtype",
        "f32",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"convert_hf_to_gguf: {done.stderr[-800:]}")
    wanted_layers = load(export.folder).config.num_hidden_layers
    layers = int(GGUFReader(file).fields["llama.block_count"].parts[-1][0])
    text = evaluation_text() + PECULIAR
    with closing(_open(file)) as model:
        theirs = torch.stack([_logits(model, window.tolist()) for window in windows()])  # [N, S, V]
        ids = model.tokenize(text.encode(), add_bos=False)
    right, wrong = logits(export.folder), logits(exports.control.folder)
    perplexity, ours, control = (math.exp(loss(some)) for some in (theirs, right, wrong))
    wanted = tokenize(text)
    different = sum(a != b for a, b in zip(ids, wanted, strict=False)) + abs(len(ids) - len(wanted))

    def finding(
        compared: str, error: float, tolerance: float, control: float | None = None, values: str = ""
    ) -> Finding:
        return Finding("llama.cpp", export.name, compared, error, tolerance, control, values)

    tokens = windows().numel()
    return [
        finding("number of layers in the GGUF file, off by", abs(layers - wanted_layers), 0, None, f"{layers} layers"),
        finding("token ids that differ", different, 0, None, f"{len(wanted)} tokens"),
        finding(
            f"logits on {tokens} tokens, largest difference", float((theirs - right).abs().max()), LOGITS,
            float((theirs - wrong).abs().max()), f"standard deviation {float(right.std()):.2f}",
        ),
        finding(
            f"perplexity on {tokens} tokens, relative", abs(perplexity / ours - 1), PERPLEXITY,
            abs(perplexity / control - 1), f"{perplexity:.6f} and {ours:.6f}",
        ),
    ]  # fmt: skip


def _open(file: Path) -> Llama:
    # Keys and values in float16, the default, would be most of the difference of the logits.
    return Llama(
        str(file), n_ctx=SEQLEN, n_batch=SEQLEN, logits_all=True, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32,
        n_threads=torch.get_num_threads(), n_threads_batch=torch.get_num_threads(), verbose=False,
    )  # fmt: skip


def _logits(model: Llama, ids: list[int]) -> torch.Tensor:
    """[S, V] of one window that stands alone."""
    model.reset()
    model.eval(ids)
    return torch.from_numpy(model.scores[: len(ids)].copy())
