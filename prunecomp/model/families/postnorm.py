"""Families of which a norm writes to the stream: GLM-4 between two norms; OLMo 2 and 3 with no norm in front, so that
the gate of the MLP sees the size of the stream. What else reads it there is linear up to the norm that follows."""

from prunecomp.model.adapter import Family

GLM4 = Family(
    name="GLM-4",
    model_types=("glm4",),
    writers=("post_self_attn_layernorm", "post_mlp_layernorm"),
    mlp_norm="post_mlp_layernorm",
)
OLMO2 = Family(
    name="OLMo 2/3",
    model_types=("olmo2", "olmo3"),
    writers=("post_attention_layernorm", "post_feedforward_layernorm"),
    mlp_norm="post_feedforward_layernorm",
    readers=(),
    raw_readers=("mlp.gate_proj",),
)
