"""Text decoders inside multimodal models: pruned where they stand, and the rest copied."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

import prunecomp
from prunecomp.errors import CheckpointError, FoldError, OptionError
from prunecomp.model.source import describe
from prunecomp.model.stack import LayerStack
from tests.command_line import invoke
from tests.families.configs import COMMON
from tests.families.test_families import EPSILON, LOWER, pruned_by, randomise, token_errors
from tests.generation import assert_the_cache_holds
from tests.seeds import seed

VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
TOWERS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 8},
               "vision_config": {"model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4,
               "image_token_index": 60},
    "mistral3": {"text_config": {"model_type": "mistral", "head_dim": 8}, "vision_config": {"model_type": "pixtral"}},
    "llava": {"text_config": {"model_type": "llama"}, "vision_config": {"model_type": "clip_vision_model"},
              "image_token_index": 60},
    "internvl": {"text_config": {"model_type": "qwen2"}, "vision_config": {"model_type": "internvl_vision"}},
    "paligemma": {"text_config": {"model_type": "gemma", "head_dim": 16}, "projection_dim": 32,
                  "vision_config": {"model_type": "siglip_vision_model", "projection_dim": 32}},
    "llama4": {"text_config": {"model_type": "llama4_text", "head_dim": 8, "num_local_experts": 4,
                               "interleave_moe_layer_step": 2, "intermediate_size_mlp": 64, "attention_chunk_size": 8},
               "vision_config": {"model_type": "llama4_vision_model", "vision_output_dim": 16,
                                 "projector_input_dim": 16, "projector_output_dim": 16}},
}  # fmt: skip


def save_tower(case: str, folder: Path) -> Any:
    """A whole model with random weights, saved as transformers has it, and the model."""
    options = json.loads(json.dumps(TOWERS[case]))
    text = {**COMMON, "pad_token_id": 0, **options.pop("text_config")}
    vision = {**VISION, **options.pop("vision_config")}
    config = AutoConfig.for_model(case, text_config=text, vision_config=vision, **options)
    torch.manual_seed(seed())
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    randomise(model, 1.0 if "gemma" in case else 0.0)
    model.save_pretrained(folder)
    return model


def text_logits(folder_or_model: Any, tokens: torch.Tensor) -> torch.Tensor:
    model = folder_or_model
    if isinstance(model, Path):
        model = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens).logits
    return logits


def tokens_for(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 60, (2, 14), generator=generator)


@pytest.mark.parametrize("case", TOWERS)
def test_a_text_decoder_is_pruned_inside_its_model(case: str, generator: torch.Generator, tmp_path: Path) -> None:
    model = save_tower(case, tmp_path / "base")
    tokens = tokens_for(generator)
    result = pruned_by(tmp_path / "base", tokens, LOWER, "up")
    decoder = result.model_source.load()
    with decoder.evaluating():
        dense = decoder.logits(decoder.run(LayerStack.dense(8), tokens))
        expected = decoder.logits(decoder.run(result.stack, tokens))
    assert float(token_errors(dense, text_logits(model, tokens)).max()) < 1e-5
    out = result.save(tmp_path / "out")
    assert float(token_errors(text_logits(out, tokens), expected).max()) < EPSILON
    before = json.loads((tmp_path / "base" / "config.json").read_text())
    after = json.loads((out / "config.json").read_text())
    assert after.pop("text_config")["num_hidden_layers"] == 5
    del before["text_config"]
    assert after.pop("layer_map") == list(result.stack.alive)
    assert after == before
    read, written = (load_file(folder / "model.safetensors") for folder in (tmp_path / "base", out))
    seen = [name for name in read if "vision" in name or "projector" in name]
    assert seen
    for name in seen:
        assert torch.equal(read[name], written[name]), name
    loaded = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    if case != "paligemma":  # within a prompt it attends both ways, so a longer one is another computation
        assert_the_cache_holds(loaded, tokens[:1], 4)


IMAGE = 60
PIXELS: dict[str, int] = {"llava": 4, "gemma3": 4}
"""Tokens of an image of 28 x 28."""


@pytest.mark.parametrize("case", PIXELS)
def test_images_are_seen_as_before(case: str, generator: torch.Generator, tmp_path: Path) -> None:
    """Against the whole model with its layers taken out by hand and their scales put on the stream by hooks."""
    model = save_tower(case, tmp_path / "base")
    tokens = tokens_for(generator)[:1]
    out = pruned_by(tmp_path / "base", tokens, LOWER, "up").save(tmp_path / "out")
    seen = torch.cat([tokens[:, :3], torch.full((1, PIXELS[case]), IMAGE), tokens[:, 3:]], dim=1)
    pixels = torch.randn(1, 3, 28, 28, generator=generator)
    options: dict[str, Any] = {"input_ids": seen, "pixel_values": pixels, "use_cache": False}
    if case == "gemma3":
        options["token_type_ids"] = (seen == IMAGE).long()
    layers = model.model.language_model.layers
    scale = 1.0
    for layer in range(8):  # a layer that goes passes the stream on, times its scale
        if layer in LOWER:
            scale = LOWER[layer]
            layers[layer].register_forward_hook(
                lambda _, args, kwargs, out, scale=scale: scale * (args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
    loaded = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        expected, got = model(**options).logits, loaded(**options).logits
        other = loaded(**{**options, "pixel_values": -pixels}).logits
    assert float(token_errors(got, expected).max()) < EPSILON
    assert float(token_errors(other, expected)[:, -1].max()) > EPSILON


def test_an_embedding_beside_images_is_not_scaled(generator: torch.Generator, tmp_path: Path) -> None:
    save_tower("llava", tmp_path / "base")
    tokens = tokens_for(generator)
    with pytest.raises(FoldError, match="in llava images enter the stream beside it, unscaled: use --fold up"):
        prunecomp.prune(tmp_path / "base", 1, tokens, fold="down", preset="paper")
    result = prunecomp.prune(tmp_path / "base", 2, tokens, compensation="none", preset="paper")
    result.options = replace(result.options, fold="down")
    result.save(tmp_path / "none")
    result.stack = LayerStack.dense(8).remove(2, 1.5)
    with pytest.raises(FoldError, match="use --fold up"):
        result.save(tmp_path / "scaled")


def test_the_newer_names_are_known_too(generator: torch.Generator, tmp_path: Path) -> None:
    """``model.language_model.layers`` with the head outside."""
    model = save_tower("llava", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = {
        name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head"): t
        for name, t in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    tokens = tokens_for(generator)
    assert float(token_errors(text_logits(tmp_path / "base", tokens), text_logits(model, tokens)).max()) == 0
    result = pruned_by(tmp_path / "base", tokens, LOWER, "up")
    decoder = result.model_source.load()
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
    out = result.save(tmp_path / "out")
    assert float(token_errors(text_logits(out, tokens), expected).max()) < EPSILON
    assert "model.language_model.layers.4.mlp.up_proj.weight" in load_file(out / "model.safetensors")


def test_a_tower_is_described_by_the_model_around_it(tmp_path: Path) -> None:
    save_tower("llava", tmp_path / "base")
    seen = describe(tmp_path / "base")
    assert seen["layers"] == 8
    assert seen["layers_stored_as"] == "language_model.model.layers"
    assert seen["text_decoder_of"] == "llava"


def test_two_decoders_of_one_name_are_told(tmp_path: Path) -> None:
    save_tower("llava", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    twice = {
        name.replace("language_model.", "draft."): t.clone() for name, t in tensors.items() if "language_model" in name
    }
    save_file({**tensors, **twice}, file)
    with pytest.raises(CheckpointError, match=r"several decoders .* draft\.model\., language_model\.model\."):
        prunecomp.prune(tmp_path / "base", 1, torch.zeros(1, 8, dtype=torch.int64), preset="paper")


def test_an_unknown_text_decoder_is_named(tmp_path: Path) -> None:
    save_tower("llava", tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["model_type"] = "mamba"
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="model_type 'mamba' is not a known family"):
        prunecomp.prune(tmp_path / "base", 1, torch.zeros(1, 8, dtype=torch.int64), preset="paper")


def test_a_multimodal_model_object_is_told_to_come_as_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"llava .* text decoder .* folder"):
        prunecomp.prune(save_tower("llava", tmp_path / "base"), 1, torch.zeros(1, 8, dtype=torch.int64), preset="paper")


def test_no_recipe_for_a_part_of_a_model(generator: torch.Generator, tmp_path: Path) -> None:
    save_tower("llava", tmp_path / "base")
    result = pruned_by(tmp_path / "base", tokens_for(generator), LOWER, "up")
    with pytest.raises(OptionError, match=r"--recipe: the files have the layers as language_model\.model\.layers"):
        result.save(tmp_path / "out", recipe=True)
    command = ["prune", tmp_path / "base", "--layers", 1, "--calibration", "none.txt", "--out", tmp_path / "o"]
    refused = invoke(*command, "--recipe")
    assert refused.exit_code == OptionError.exit_code
    assert "text decoder of a llava model" in " ".join(refused.stderr.split())
