"""vLLM (vllm-cpu), in whose environment this runs: it loads an export and writes what transformers writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integrations.common import MODEL, cli_export

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
vllm = pytest.importorskip("vllm")

PROMPTS, NEW_TOKENS = 3, 16


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


def test_an_export_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    folder = cli_export(tmp_path / "out")
    assert written_by_vllm(folder, "float32") == greedy(folder)
