"""Qwen2 (biases on q, k, v) and Qwen3 (norms on q and k): Llama's shape, with windows above a threshold layer."""

from prunecomp.model.adapter import Family

QWEN2 = Family(name="Qwen2", model_types=("qwen2",), layer_thresholds=("max_window_layers",))
QWEN3 = Family(name="Qwen3", model_types=("qwen3",), layer_thresholds=("max_window_layers",))
