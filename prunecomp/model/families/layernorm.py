"""Families that read through LayerNorm, with or without a bias; in some attention and MLP read the same stream."""

from prunecomp.model.adapter import Family

COHERE = Family(
    name="Cohere (Command-R)",
    model_types=("cohere", "cohere2"),
    readers=("input_layernorm",),
    norm="LayerNorm",
    logit_multiplier="logit_scale",
    layer_periods=("sliding_window_pattern",),
)
STABLELM = Family(name="StableLM", model_types=("stablelm",), norm="LayerNorm")
GPT2 = Family(
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
)
OPT = Family(
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
)
GPT_NEOX = Family(
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
)
FALCON = Family(
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
)
