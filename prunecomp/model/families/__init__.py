"""The families known out of the box, as one explicit table."""

from prunecomp.model.adapter import Family, FamilyRegistry

EXPERT, BLOCK = "model.layers.*.mlp.experts.*", "model.layers.*.block_sparse_moe"
UNFUSED = (
    ("model.layers.*.mlp.experts.gate_up_proj", (f"{EXPERT}.gate_proj.weight", f"{EXPERT}.up_proj.weight")),
    ("model.layers.*.mlp.experts.down_proj", (f"{EXPERT}.down_proj.weight",)),
)
"""As files of Qwen's and DeepSeek's models hold them: three matrices an expert."""
POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
"""Of families in which a norm stands behind each sublayer and writes to the stream."""

TABLE = (
    # Llama's shape, pre-norm RMSNorm blocks and SwiGLU, with or without biases.
    Family(name="Llama", model_types=("llama",)),
    Family(
        name="Llama 4",  # some layers without rotary embeddings, some of experts
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
    ),
    Family(name="Mistral", model_types=("mistral",)),
    Family(name="Ministral", model_types=("ministral", "ministral3")),
    Family(
        name="Mixtral",
        model_types=("mixtral",),
        writers=("self_attn.o_proj", "mlp.experts.down_proj"),
        mlp_writers=(),
        stored_as=(
            ("model.layers.*.mlp.gate.weight", (f"{BLOCK}.gate.weight",)),
            (
                "model.layers.*.mlp.experts.gate_up_proj",
                (f"{BLOCK}.experts.*.w1.weight", f"{BLOCK}.experts.*.w3.weight"),
            ),
            ("model.layers.*.mlp.experts.down_proj", (f"{BLOCK}.experts.*.w2.weight",)),
        ),
    ),
    # Qwen: biases on q, k, v (2) or norms on q and k (3), windows above a threshold layer.
    Family(name="Qwen2", model_types=("qwen2",), layer_thresholds=("max_window_layers",)),
    Family(name="Qwen3", model_types=("qwen3",), layer_thresholds=("max_window_layers",)),
    Family(
        name="Qwen3-MoE",
        model_types=("qwen3_moe",),
        writers=("self_attn.o_proj", "mlp.down_proj", "mlp.experts.down_proj"),
        layer_indices=("mlp_only_layers",),
        layer_thresholds=("max_window_layers",),
        sparse_period=("decoder_sparse_step", "mlp_only_layers"),
        stored_as=UNFUSED,
    ),
    # Gemma: gains are 1 + w, the head is tied, embeddings are multiplied by sqrt(d); windows come in a pattern.
    Family(name="Gemma", model_types=("gemma",), gain_offset=1.0),
    Family(
        name="Gemma 2",
        model_types=("gemma2",),
        writers=POST_NORMS,
        mlp_norm=POST_NORMS[1],
        readers=("input_layernorm", "pre_feedforward_layernorm"),
        gain_offset=1.0,
        logit_softcap="final_logit_softcapping",
    ),
    Family(
        name="Gemma 3 (text)",
        model_types=("gemma3_text",),
        writers=POST_NORMS,
        mlp_norm=POST_NORMS[1],
        readers=("input_layernorm", "pre_feedforward_layernorm"),
        gain_offset=1.0,
        logit_softcap="final_logit_softcapping",
        layer_periods=("sliding_window_pattern", "_sliding_window_pattern"),
    ),
    Family(name="Phi-3", model_types=("phi3",)),  # fused projections
    Family(
        name="OLMo 2/3",  # no norm in front: the gate sees the stream's size; what else reads it is linear up to a norm
        model_types=("olmo2", "olmo3"),
        writers=POST_NORMS,
        mlp_norm=POST_NORMS[1],
        readers=(),
        raw_readers=("mlp.gate_proj",),
    ),
    Family(
        name="SmolLM3",
        model_types=("smollm3",),
        layer_lists=("layer_types", "no_rope_layers"),
        layer_periods=("no_rope_layer_interval",),
    ),
    Family(
        name="Granite",
        model_types=("granite",),
        residual_multiplier="residual_multiplier",
        logit_divisor="logits_scaling",
    ),
    Family(
        name="GLM-4",  # between two norms
        model_types=("glm4",),
        writers=("post_self_attn_layernorm", "post_mlp_layernorm"),
        mlp_norm="post_mlp_layernorm",
    ),
    # LayerNorm, with or without a bias; in some attention and MLP read the same stream.
    Family(
        name="Cohere (Command-R)",
        model_types=("cohere", "cohere2"),
        readers=("input_layernorm",),
        norm="LayerNorm",
        logit_multiplier="logit_scale",
        layer_periods=("sliding_window_pattern",),
    ),
    Family(name="StableLM", model_types=("stablelm",), norm="LayerNorm"),
    # Experts whose last matrices are one fused parameter, alone or beside shared experts and dense layers.
    Family(
        name="DeepSeek-V2/V3",
        model_types=("deepseek_v2", "deepseek_v3"),
        writers=("self_attn.o_proj", "mlp.down_proj", "mlp.experts.down_proj", "mlp.shared_experts.down_proj"),
        mlp_writers=("mlp.down_proj", "mlp.shared_experts.down_proj"),
        layer_thresholds=("first_k_dense_replace",),
        extra_layers=("num_nextn_predict_layers",),
        stored_as=UNFUSED,
    ),
    Family(
        name="GPT-OSS",
        model_types=("gpt_oss",),
        writers=("self_attn.o_proj", "mlp.experts.down_proj", "mlp.experts.down_proj_bias"),
        mlp_writers=(),
    ),
    # LayerNorm again, under other paths.
    Family(
        name="GPT-2",
        model_types=("gpt2",),
        backbone="transformer",
        layers="transformer.h",
        embeddings=("transformer.wte", "transformer.wpe"),
        final_norm="transformer.ln_f",
        writers=("attn.c_proj", "mlp.c_proj"),
        mlp_writers=("mlp.c_proj",),
        readers=("ln_1", "ln_2"),
        norm="LayerNorm",
        layer_count="n_layer",
    ),
    Family(
        name="OPT",
        model_types=("opt",),
        backbone="model.decoder",
        layers="model.decoder.layers",
        embeddings=("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        final_norm="model.decoder.final_layer_norm",  # not there where do_layer_norm_before is false (350M): refused
        writers=("self_attn.out_proj", "fc2"),
        mlp_writers=("fc2",),
        readers=("self_attn_layer_norm", "final_layer_norm"),
        norm="LayerNorm",
        refused_parts=(("model.decoder.project_in", "it and project_out stand between stream, embedding and head"),),
    ),
    Family(
        name="GPT-NeoX (Pythia)",
        model_types=("gpt_neox",),
        backbone="gpt_neox",
        layers="gpt_neox.layers",
        embeddings=("gpt_neox.embed_in",),
        final_norm="gpt_neox.final_layer_norm",
        writers=("attention.dense", "mlp.dense_4h_to_h"),
        mlp_writers=("mlp.dense_4h_to_h",),
        norm="LayerNorm",
        stored_as=(("lm_head.weight", ("embed_out.weight",)),),
    ),
    Family(
        name="Falcon",
        model_types=("falcon",),
        backbone="transformer",
        layers="transformer.h",
        embeddings=("transformer.word_embeddings",),
        final_norm="transformer.ln_f",
        writers=("self_attention.dense", "mlp.dense_4h_to_h"),
        mlp_writers=("mlp.dense_4h_to_h",),
        readers=("input_layernorm", "post_attention_layernorm", "ln_attn", "ln_mlp"),
        norm="LayerNorm",
        returns_tuple=True,
    ),
)

families = FamilyRegistry(TABLE)
