"""A small model with a tokenizer on disk, and the command line in this process."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.command_line import Result
from tests.command_line import invoke as run
from tests.conftest import REFERENCE_MODEL

VOCABULARY = 4096


def model(model_type: str = "llama", **fields: Any) -> Any:
    """A random float32 model of width 32 with 3 layers, over the bundled tokenizer."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
        "pad_token_id": None,
    }  # fmt: skip
    config = AutoConfig.for_model(model_type, **{**sizes, **fields})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()


def save(built: Any, folder: Path) -> Path:
    """With the bundled tokenizer beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built.save_pretrained(folder)
    for file in REFERENCE_MODEL.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def command(*words: object, stdin: str | bytes | None = None) -> Result:
    return run(*words, stdin=stdin)
