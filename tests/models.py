"""Small random models: grouped queries, biases, tied heads, windows, norms with gains away from 1."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied-biased": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 8, "head_dim": 16},
    "mistral-tied": {"model_type": "mistral", "sliding_window": None, "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    "qwen2-tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "use_sliding_window": True, "sliding_window": 8,
              "max_window_layers": 2, "attention_bias": True},
    "qwen3-tied": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
}  # fmt: skip


def build(case: str, **overrides: Any) -> Any:
    """A float32 model in eval mode whose every parameter is random: gains in 0.5..1.5, biases of size 0.1."""
    options = {**COMMON, **CASES[case], **overrides}
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.normal_(std=0.5)
            else:
                parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
    return model.eval()


def draw_tokens(model: Any, generator: torch.Generator, windows: int = 5, seqlen: int = 24) -> torch.Tensor:
    """Random token ids, int64 [windows, seqlen]."""
    return torch.randint(0, model.config.vocab_size, (windows, seqlen), generator=generator)
