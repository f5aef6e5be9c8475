"""Mixtures of experts whose last matrices are one fused parameter, alone or beside shared experts and dense layers."""

from prunecomp.model.adapter import Family

EXPERT = "model.layers.*.mlp.experts.*"
UNFUSED = (
    ("model.layers.*.mlp.experts.gate_up_proj", (f"{EXPERT}.gate_proj.weight", f"{EXPERT}.up_proj.weight")),
    ("model.layers.*.mlp.experts.down_proj", (f"{EXPERT}.down_proj.weight",)),
)
"""As files of Qwen's and DeepSeek's models hold them: three matrices an expert."""
BLOCK = "model.layers.*.block_sparse_moe"

MIXTRAL = Family(
    name="Mixtral",
    model_types=("mixtral",),
    writers=("self_attn.o_proj", "mlp.experts.down_proj"),
    mlp_writers=(),
    stored_as=(
        ("model.layers.*.mlp.gate.weight", (f"{BLOCK}.gate.weight",)),
        ("model.layers.*.mlp.experts.gate_up_proj", (f"{BLOCK}.experts.*.w1.weight", f"{BLOCK}.experts.*.w3.weight")),
        ("model.layers.*.mlp.experts.down_proj", (f"{BLOCK}.experts.*.w2.weight",)),
    ),
)
DEEPSEEK = Family(
    name="DeepSeek-V2/V3",
    model_types=("deepseek_v2", "deepseek_v3"),
    writers=("self_attn.o_proj", "mlp.down_proj", "mlp.experts.down_proj", "mlp.shared_experts.down_proj"),
    mlp_writers=("mlp.down_proj", "mlp.shared_experts.down_proj"),
    layer_thresholds=("first_k_dense_replace",),
    extra_layers=("num_nextn_predict_layers",),
    stored_as=UNFUSED,
)
GPT_OSS = Family(
    name="GPT-OSS",
    model_types=("gpt_oss",),
    writers=("self_attn.o_proj", "mlp.experts.down_proj", "mlp.experts.down_proj_bias"),
    mlp_writers=(),
)
