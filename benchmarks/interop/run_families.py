"""llama.cpp on small random models of other families, those among them in which a layer's number says what it does."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import prunecomp
from benchmarks.interop.exports import MODEL, Exports, load
from benchmarks.interop.gguf_file import convert, gguf_logits, open_gguf
from benchmarks.interop.report import Finding

SEQLEN = 48
TOLERANCE = 1e-2
"""llama.cpp looks GELU up in a table of float16, which shows in Gemma; the others come to 1e-5 or so."""
COMMON: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 12, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": None,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
    "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 3,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None, **EXPERTS},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 8},
    "granite": {"residual_multiplier": 0.22, "logits_scaling": 8.0, "embedding_multiplier": 12.0},
    "glm4": {},
    "cohere": {"logit_scale": 0.25},
    "stablelm": {},
    "ministral3": {},
    "deepseek_v2": LATENT,
}
PERIODIC: dict[str, tuple[int, dict[str, Any]]] = {
    "gemma2": (2, {"sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3_text": (6, {"sliding_window": 8, "query_pre_attn_scalar": 8}),
    "smollm3": (4, {}),
    "cohere2": (4, {"logit_scale": 0.25, "sliding_window": 8, "rotary_pct": 1.0}),
    "llama4_text": (4, {"interleave_moe_layer_step": 2, "intermediate_size_mlp": 64, "attention_chunk_size": 8192,
                        "num_local_experts": 4, "num_experts_per_tok": 1}),
}  # fmt: skip
"""The period after which the kinds of layers repeat, and the config."""
SINGLE = [1, 4, 6]


def run(exports: Exports) -> list[Finding]:
    findings = []
    for name, options in FAMILIES.items():
        base = build(name, options, exports.work / "families" / name)
        export, control = prune(base, SINGLE, "scale"), prune(base, SINGLE, "none")
        theirs = read(export)
        findings.append(
            Finding(
                "llama.cpp families", f"random {name}", f"layers {SINGLE} removed: logits, relative",
                apart(theirs, ours(export)), TOLERANCE, apart(theirs, ours(control)),
            )
        )  # fmt: skip
    for name, (period, options) in PERIODIC.items():
        base = build(name, options, exports.work / "families" / name)
        export, control = prune(base, list(range(1, 1 + period)), "scale"), prune(base, SINGLE, "scale")
        try:
            misread, values = apart(read(control), ours(control)), ""
        except ValueError:  # what llama-cpp-python raises for a file that llama.cpp refuses
            misread, values = float("inf"), "the control does not load"
        findings.append(
            Finding(
                "llama.cpp families", f"random {name}", f"a period of {period} removed: logits, relative",
                apart(read(export), ours(export)), TOLERANCE, misread, values,
            )
        )  # fmt: skip
    return findings


def build(model_type: str, options: dict[str, Any], folder: Path) -> Path:
    """A checkpoint with random weights in float32, and with the tokenizer of the bundled model."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**COMMON, **options})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "norm" in name:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.5, 0.5))
            elif "embed" not in name and "lm_head" not in name:
                parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)  # a layer counts for something
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / file, folder / file)
    return folder


def prune(base: Path, layers: list[int], compensation: str) -> Path:
    result = prunecomp.prune(
        base, len(layers), tokens(), metric="given", given=layers, compensation=compensation, preset="paper"
    )
    return result.save(base.with_name(f"{base.name}-{len(layers)}-{compensation}"))


def tokens() -> torch.Tensor:
    return torch.randint(0, COMMON["vocab_size"], (2, SEQLEN), generator=torch.Generator().manual_seed(1))


def ours(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = load(folder)(tokens()).logits
    return result


def read(folder: Path) -> torch.Tensor:
    file = folder.with_suffix(".gguf")
    convert(folder, file, "--byte-level")
    with closing(open_gguf(file, SEQLEN)) as model:
        return gguf_logits(model, tokens())


def apart(some: torch.Tensor, others: torch.Tensor) -> float:
    """The largest distance of a token's logits, relative to their norm."""
    return float(((some - others).norm(dim=-1) / others.norm(dim=-1)).max())
