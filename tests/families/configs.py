"""A real config of every family, shrunk: eight layers, a few heads and experts, windows of 8, caps and biases kept."""

from __future__ import annotations

from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
    "n_routed_experts": 4, "n_shared_experts": 2, "num_key_value_heads": 4, "first_k_dense_replace": 3,
}  # fmt: skip

FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": {"model_type": "llama", "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}},
    "mistral": {"model_type": "mistral", "sliding_window": 8, "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "use_sliding_window": True, "sliding_window": 8,
              "max_window_layers": 4, "attention_bias": True, "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", "head_dim": 16},
    "gemma2": {"model_type": "gemma2", "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16,
               "sliding_window_pattern": 3},
    "qwen3-moe": {"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 4, "mlp_only_layers": [1, 6], **EXPERTS},
    "qwen3-moe-period": {"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 4, "decoder_sparse_step": 2,
                         "mlp_only_layers": [3], "tie_word_embeddings": True, **EXPERTS},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": 8},
    "olmo2": {"model_type": "olmo2"},
    "olmo3": {"model_type": "olmo3", "sliding_window": 8},
    "phi3": {"model_type": "phi3", "sliding_window": 8},
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 4, "use_sliding_window": True, "sliding_window": 8},
    "granite": {"model_type": "granite", "residual_multiplier": 0.22, "embedding_multiplier": 12.0,
                "logits_scaling": 8.0, "attention_multiplier": 0.0156, "attention_bias": True, "mlp_bias": True,
                "tie_word_embeddings": True},
    "ministral": {"model_type": "ministral", "head_dim": 8, "sliding_window": 8,
                  "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"] * 2},
    "ministral3": {"model_type": "ministral3", "head_dim": 8},
    "glm4": {"model_type": "glm4", "head_dim": 8, "attention_bias": True},
    "cohere": {"model_type": "cohere", "use_qk_norm": True, "logit_scale": 0.25, "attention_bias": True},
    "cohere2": {"model_type": "cohere2", "logit_scale": 0.25, "sliding_window": 8},
    "stablelm": {"model_type": "stablelm", "use_qkv_bias": True, "qk_layernorm": True},
    "stablelm-parallel": {"model_type": "stablelm", "use_parallel_residual": True, "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", "n_layer": 8, "n_embd": 32, "n_head": 4, "n_positions": 64, "n_inner": 48},
    "opt": {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt-neox": {"model_type": "gpt_neox", "use_parallel_residual": True},
    "gpt-neox-sequential": {"model_type": "gpt_neox", "use_parallel_residual": False, "tie_word_embeddings": True},
    "falcon-7b": {"model_type": "falcon", "multi_query": True, "parallel_attn": True, "bias": False},
    "falcon-40b": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2, "bias": False},
    "falcon-alibi": {"model_type": "falcon", "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "deepseek-v2": {"model_type": "deepseek_v2", "n_group": 1, "topk_group": 1, **EXPERTS, **LATENT},
    "deepseek-v3": {"model_type": "deepseek_v3", "n_group": 2, "topk_group": 1, "num_nextn_predict_layers": 1,
                    **EXPERTS, **LATENT},
    "gpt-oss": {"model_type": "gpt_oss", "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
                "sliding_window": 8, "attention_bias": True},
    "llama4": {"model_type": "llama4_text", "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 1,
               "interleave_moe_layer_step": 2, "intermediate_size_mlp": 64, "attention_chunk_size": 8,
               "tie_word_embeddings": False},
}  # fmt: skip

FOLLOWS: dict[str, dict[str, Any]] = {
    "qwen2": {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 3, "max_window_layers": 2},
    "qwen3": {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 3, "max_window_layers": 2},
    "gemma2": {"layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention",
                               "full_attention"]},
    "gemma3": {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention",
                               "sliding_attention"]},
    "qwen3-moe": {"mlp_only_layers": [0, 3]},
    "qwen3-moe-period": {"mlp_only_layers": [1, 3], "decoder_sparse_step": 1},
    "smollm3": {"no_rope_layers": [1, 1, 1, 1, 0]},
    "deepseek-v2": {"first_k_dense_replace": 2},
    "deepseek-v3": {"first_k_dense_replace": 2, "num_nextn_predict_layers": 0},
    "llama4": {"moe_layers": [0, 2, 4], "no_rope_layers": [1, 1, 1, 1, 0]},
    "gpt2": {"n_layer": 5},
}  # fmt: skip
"""What an exported config says where layers 0, 3 and 4 are gone, beside the number of layers."""
