"""Qwen: Llama's shape, with biases on q, k, v (2) or norms on q and k (3), windows above a threshold layer, experts."""

from prunecomp.model.adapter import Family
from prunecomp.model.families.experts import UNFUSED

QWEN2 = Family(name="Qwen2", model_types=("qwen2",), layer_thresholds=("max_window_layers",))
QWEN3 = Family(name="Qwen3", model_types=("qwen3",), layer_thresholds=("max_window_layers",))
QWEN3_MOE = Family(
    name="Qwen3-MoE",
    model_types=("qwen3_moe",),
    writers=("self_attn.o_proj", "mlp.down_proj", "mlp.experts.down_proj"),
    layer_indices=("mlp_only_layers",),
    layer_thresholds=("max_window_layers",),
    sparse_period=("decoder_sparse_step", "mlp_only_layers"),
    stored_as=UNFUSED,
)
