"""Mixtures of experts whose last matrices are one fused parameter, alone or beside shared experts and dense layers."""

from prunecomp.model.adapter import Family

MIXTRAL = Family(
    name="Mixtral",
    model_types=("mixtral",),
    writers=("self_attn.o_proj", "mlp.experts.down_proj"),
    mlp_writer=None,
)
DEEPSEEK = Family(
    name="DeepSeek-V2/V3",
    model_types=("deepseek_v2", "deepseek_v3"),
    writers=("self_attn.o_proj", "mlp.down_proj", "mlp.experts.down_proj", "mlp.shared_experts.down_proj"),
    mlp_writer=None,
    layer_thresholds=("first_k_dense_replace",),
    extra_layers=("num_nextn_predict_layers",),
)
GPT_OSS = Family(
    name="GPT-OSS",
    model_types=("gpt_oss",),
    writers=("self_attn.o_proj", "mlp.experts.down_proj", "mlp.experts.down_proj_bias"),
    mlp_writer=None,
)
