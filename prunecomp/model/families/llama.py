"""Llama's shape, pre-norm RMSNorm blocks and SwiGLU: biases (Llama), windows (Mistral, Ministral), layers without
rotary embeddings (SmolLM3, Llama 4), fused projections (Phi-3), multipliers (Granite)."""

from prunecomp.model.adapter import Family

LLAMA = Family(name="Llama", model_types=("llama",))
MISTRAL = Family(name="Mistral", model_types=("mistral",))
MINISTRAL = Family(name="Ministral", model_types=("ministral", "ministral3"))
SMOLLM3 = Family(
    name="SmolLM3",
    model_types=("smollm3",),
    layer_lists=("layer_types", "no_rope_layers"),
    layer_periods=("no_rope_layer_interval",),
)
PHI3 = Family(name="Phi-3", model_types=("phi3",))
GRANITE = Family(
    name="Granite",
    model_types=("granite",),
    residual_multiplier="residual_multiplier",
    logit_divisor="logits_scaling",
)
LLAMA4 = Family(
    name="Llama 4",
    model_types=("llama4_text",),
    writers=(
        "self_attn.o_proj",
        "feed_forward.down_proj",
        "feed_forward.experts.down_proj",
        "feed_forward.shared_expert.down_proj",
    ),
    mlp_writers=("feed_forward.down_proj", "feed_forward.shared_expert.down_proj"),
    layer_lists=("layer_types", "no_rope_layers"),
    layer_indices=("moe_layers",),
    layer_periods=("no_rope_layer_interval", "interleave_moe_layer_step"),
)
