"""Gemma: gains are 1 + w, the head is tied, embeddings are multiplied by sqrt(d); from Gemma 2 on a norm stands behind
each sublayer and writes to the stream, and windows come in a pattern."""

from prunecomp.model.adapter import Family

GEMMA = Family(name="Gemma", model_types=("gemma",), gain_offset=1.0)
GEMMA2 = Family(
    name="Gemma 2",
    model_types=("gemma2",),
    writers=("post_attention_layernorm", "post_feedforward_layernorm"),
    mlp_norm="post_feedforward_layernorm",
    readers=("input_layernorm", "pre_feedforward_layernorm"),
    gain_offset=1.0,
    logit_softcap="final_logit_softcapping",
)
GEMMA3 = Family(
    name="Gemma 3 (text)",
    model_types=("gemma3_text",),
    writers=GEMMA2.writers,
    mlp_norm="post_feedforward_layernorm",
    readers=GEMMA2.readers,
    gain_offset=1.0,
    logit_softcap="final_logit_softcapping",
    layer_periods=("sliding_window_pattern", "_sliding_window_pattern"),
)
