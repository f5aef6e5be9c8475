"""Exported checkpoints: the same function as the seam model, and nothing touched that need not be."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import prunecomp
from prunecomp.errors import FoldError, OptionError, PrunecompWarning
from prunecomp.model.config import follow_layers, prune_config
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families
from prunecomp.model.stack import LayerStack
from tests.generation import assert_the_cache_holds
from tests.models import build, draw_tokens
from tests.tolerances import error, relative


def prune_by_hand(result: prunecomp.PruneResult, removals: dict[int, float]) -> LayerStack:
    """Replace the result's stack by chosen removals with chosen scales."""
    stack = LayerStack.dense(result.stack.num_layers)
    for layer, scale in removals.items():
        stack = stack.remove(layer, scale)
    result.stack = stack
    return stack


REMOVALS = {0: 0.5, 2: 3.0, 3: 0.8, 5: 2.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fold", ["up", "down"])
def test_exported_logits_match_the_seam_model(
    model: Any, generator: torch.Generator, tmp_path: Path, fold: str, dtype: torch.dtype
) -> None:
    model.to(dtype)
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(model, 1, tokens, fold=fold, preset="paper")
    stack = prune_by_hand(result, REMOVALS)
    out = result.save(tmp_path / "out")

    decoder = Decoder(model.float())
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(stack, tokens))
        loaded = AutoModelForCausalLM.from_pretrained(out)
        assert loaded.dtype == dtype
        assert loaded(input_ids=tokens).logits.isfinite().all()
        got = loaded.float()(input_ids=tokens).logits
    assert loaded.config.num_hidden_layers == 2
    assert error(got, expected) < relative(dtype)


def test_apply_gives_the_tensors_that_save_writes(model: Any, generator: torch.Generator, tmp_path: Path) -> None:
    result = prunecomp.prune(model, 3, draw_tokens(model, generator), preset="paper")
    out = result.save(tmp_path / "out")
    other = copy.deepcopy(model)
    result.apply(other)
    written = load_file(out / "model.safetensors")
    for name, tensor in other.state_dict().items():
        if name in written:
            assert torch.equal(tensor, written[name]), name
    assert other.config.num_hidden_layers == len(other.model.layers) == 3
    assert [layer.self_attn.layer_idx for layer in other.model.layers] == [0, 1, 2]
    with pytest.raises(OptionError, match="pruned already"):
        result.apply(other)


def test_generation_with_a_cache_equals_generation_without(
    model: Any, generator: torch.Generator, tmp_path: Path
) -> None:
    out = prunecomp.prune(model, 3, draw_tokens(model, generator), preset="paper").save(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert_the_cache_holds(loaded, draw_tokens(model, generator, windows=1, seqlen=6), 20)


def test_applied_model_generates_with_a_cache(model: Any, generator: torch.Generator) -> None:
    result = prunecomp.prune(model, 3, draw_tokens(model, generator), preset="paper")
    result.apply(model)
    assert_the_cache_holds(model, draw_tokens(model, generator, windows=1, seqlen=6), 20)


def test_up_fold_leaves_everything_below_the_lowest_cut_byte_for_byte(
    model: Any, generator: torch.Generator, tmp_path: Path
) -> None:
    result = prunecomp.prune(model, 1, draw_tokens(model, generator), preset="paper")
    prune_by_hand(result, {3: 1.7})
    written = load_file(result.save(tmp_path / "out") / "model.safetensors")
    original = model.state_dict()
    changed = {name for name in written if not torch.equal(written[name], original[renumbered(name, cut=3)])}
    tensors = [name for p in (3, 4) for name in Decoder(model).writer_tensors(p)]
    assert changed == set(tensors)


def renumbered(name: str, cut: int) -> str:
    parts = name.split(".")
    if parts[1] == "layers" and int(parts[2]) >= cut:
        parts[2] = str(int(parts[2]) + 1)
    return ".".join(parts)


def test_sharded_in_and_sharded_out(
    model: Any, generator: torch.Generator, tmp_path: Path, saved: Callable[..., Path]
) -> None:
    tokens = draw_tokens(model, generator)
    base = saved(model, max_shard_size="60KB")
    assert (base / "model.safetensors.index.json").exists()
    result = prunecomp.prune(base, 3, tokens, preset="paper")
    single = result.save(tmp_path / "single")
    sharded = result.save(tmp_path / "sharded", shard_bytes=40_000)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    whole = load_file(single / "model.safetensors")
    assert set(index["weight_map"]) == set(whole)
    for name, file in index["weight_map"].items():
        with safe_open(sharded / file, framework="pt") as shard:
            assert torch.equal(shard.get_tensor(name), whole[name]), name
    assert all(path.stat().st_size < 60_000 for path in sharded.glob("*.safetensors"))
    from_memory = prunecomp.prune(model, 3, tokens, preset="paper")
    assert from_memory.removed == result.removed
    assert from_memory.scales == result.scales


def test_export_keeps_the_dtype_of_the_checkpoint(
    generator: torch.Generator, tmp_path: Path, saved: Callable[..., Path]
) -> None:
    model = build("llama")
    out = prunecomp.prune(saved(model), 2, draw_tokens(model, generator), dtype="bfloat16", preset="paper").save(
        tmp_path / "out"
    )
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float32}


def test_a_wrong_adapter_is_caught_by_the_proof(generator: torch.Generator, tmp_path: Path) -> None:
    model = build("llama-tied-biased")
    result = prunecomp.prune(model, 1, draw_tokens(model, generator), preset="paper")
    prune_by_hand(result, {2: 1.5})
    decoder = result.model_source.load()
    decoder.family = dataclasses.replace(decoder.family, writers=("mlp.down_proj",))
    with pytest.raises(FoldError, match="layer 3 cannot take a stream scaled by"):
        result.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_overflowing_fold_is_refused_by_tensor_name(generator: torch.Generator, tmp_path: Path) -> None:
    model = build("llama").half()
    result = prunecomp.prune(model, 1, draw_tokens(model, generator), preset="paper")
    # After the run, which would meet an infinite activation; by its data, or the weights were seen to be others.
    model.model.layers[5].mlp.down_proj.weight.data[0, 0] = 6e4
    prune_by_hand(result, {1: 0.5})
    with pytest.raises(FoldError, match=r"model\.layers\.5\.mlp\.down_proj\.weight times 2 overflows"):
        result.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_config_lists_and_thresholds_follow_the_layers() -> None:
    config = {
        "num_hidden_layers": 6,
        "layer_types": ["a", "b", "c", "d", "e", "f"],
        "max_window_layers": 3,
        "vocab_size": 7,
    }
    pruned = prune_config(config, families.find("qwen3"), 6, (0, 2, 3, 5))
    assert pruned == {
        "num_hidden_layers": 4,
        "layer_types": ["a", "c", "d", "f"],
        "max_window_layers": 2,
        "vocab_size": 7,
    }
    assert config["num_hidden_layers"] == 6


def test_a_dict_is_by_layer_where_all_its_keys_are_numbers() -> None:
    config = {"layer_scale": {"0": 1.0, "2": 3.0}, "layer_notes": {"0": 1.0, "else": 2.0}}
    with pytest.warns(PrunecompWarning, match=r"config\.json: layer_scale seem to run by layers"):
        followed = follow_layers(config, (), 3, (1, 2))
    assert followed == {"layer_scale": {"1": 3.0}, "layer_notes": {"0": 1.0, "else": 2.0}}


def test_a_list_beside_a_period_stays_in_it() -> None:
    config = {"num_hidden_layers": 8, "decoder_sparse_step": 2, "mlp_only_layers": [3, 5]}
    pruned = prune_config(config, families.find("qwen3_moe"), 8, (1, 2, 3, 7))
    assert pruned == {"num_hidden_layers": 4, "decoder_sparse_step": 1, "mlp_only_layers": [1, 2]}


def test_windowed_layers_keep_their_kind(generator: torch.Generator, tmp_path: Path) -> None:
    model = build("qwen3")
    assert model.config.layer_types[1:3] == ["full_attention", "sliding_attention"]
    result = prunecomp.prune(model, 1, draw_tokens(model, generator), preset="paper")
    prune_by_hand(result, {0: 1.2, 4: 0.9})
    loaded = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "out"))
    assert loaded.config.layer_types == ["full_attention"] + ["sliding_attention"] * 3
    assert loaded.config.max_window_layers == 1
