"""Configs that cannot be, contradict themselves or the weights: a sentence that names the field, in every command."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import prunecomp
from prunecomp.errors import CheckpointError, PrunecompWarning
from prunecomp.model.config import prune_stored
from prunecomp.model.families import families
from prunecomp.model.loader import read_config
from prunecomp.model.source import describe, stored_as
from tests.families.test_families import build as build_family
from tests.situations.folders import TOKENS, edit_json, edit_tensors, folder_of, theirs

COMMANDS: dict[str, Callable[[Path], object]] = {
    "info": describe,
    "plan": lambda folder: prunecomp.plan(folder, 2),
    "score": lambda folder: prunecomp.score(folder, TOKENS),
    "eval": lambda folder: prunecomp.evaluate(folder, TOKENS),
    "prune": lambda folder: prunecomp.prune(folder, 2, "no such file", preset="paper"),
    "compare": stored_as,
}

WRONG: list[tuple[str, Any, str]] = [
    ("num_hidden_layers", "16", "num_hidden_layers"),
    ("num_hidden_layers", 16.0, "num_hidden_layers"),
    ("num_hidden_layers", None, "num_hidden_layers"),
    ("num_hidden_layers", True, "num_hidden_layers"),
    ("num_hidden_layers", 0, "num_hidden_layers"),
    ("num_hidden_layers", 100_000, "num_hidden_layers is 100000"),
    ("num_attention_heads", 0, "num_attention_heads is 0"),
    ("num_attention_heads", 7, "number of"),
    ("num_key_value_heads", 3, "num_key_value_heads"),
    ("hidden_size", -5, "hidden_size is -5"),
    ("rms_norm_eps", 0, "rms_norm_eps"),
    ("rms_norm_eps", "x", "rms_norm_eps"),
    ("model_type", ["llama"], "model_type"),
    ("model_type", "nope", "nope"),
    ("dtype", "float99", "dtype is 'float99'; one of float32"),
    ("torch_dtype", "fp16", "torch_dtype is 'fp16'; one of float32"),
    ("tie_word_embeddings", "no", "tie_word_embeddings"),
    ("quantization_config", 5, "cannot be used"),
    ("layer_types", ["full_attention"] * 8, "layer_types|num_hidden_layers"),
]
SKELETONS: list[tuple[str, Any, str]] = [
    ("num_hidden_layers", 4, r"says num_hidden_layers 4, and the weights hold 4-5 .layers held: 0-5"),
    ("num_hidden_layers", 1500, r"says num_hidden_layers 1500, and the weights lack 6-1499"),
    ("hidden_act", "foo", "hidden_act is 'foo', which is not known"),
    ("rope_parameters", {"rope_type": "foo", "rope_theta": 1e4}, "rope_type is 'foo', which is not known"),
    ("hidden_size", 10**25, "no Llama model of this shape|hidden"),
    ("quantization_config", {"quant_method": "fp8", "weight_block_size": "x"}, "quantization_config cannot be used"),
    ("dtype", "int8", "dtype is int8, in which no model runs"),
]
TEXTS = [
    "null",
    "[]",
    '"x"',
    "",
    "{",
    "{}",
    '{"a":' * 100_000,
    '{"model_type": "llama", "x": ' + "[" * 900 + "]" * 900 + "}",
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of("llama", tmp_path_factory.mktemp("configs") / "base")


@pytest.fixture
def base(shared: Path) -> Any:
    """One folder for all; its config comes back."""
    good = (shared / "config.json").read_text()
    yield shared
    (shared / "config.json").write_text(good)


@pytest.mark.parametrize(("field", "value", "message"), WRONG, ids=lambda x: str(x)[:24])
def test_a_wrong_value_is_named_by_every_command(base: Path, field: str, value: Any, message: str) -> None:
    edit_json(base / "config.json", **{field: value})
    for command in COMMANDS.values():
        with pytest.raises(CheckpointError, match=message):
            command(base)


@pytest.mark.parametrize(("field", "value", "message"), SKELETONS, ids=lambda x: str(x)[:24])
def test_a_config_of_another_model_is_told_at_once(base: Path, field: str, value: Any, message: str) -> None:
    edit_json(base / "config.json", **{field: value})
    for name, command in COMMANDS.items():
        if name != "compare":  # which looks at the config alone, before it opens the model
            started = time.perf_counter()
            with pytest.raises(CheckpointError, match=message):
                command(base)
            assert time.perf_counter() - started < 20


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:12]))
def test_a_config_that_is_none(base: Path, text: str) -> None:
    (base / "config.json").write_text(text)
    for command in COMMANDS.values():
        with pytest.raises(CheckpointError, match=r"config\.json"):
            command(base)


def test_no_advice_to_trust_code(base: Path) -> None:
    edit_json(base / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(CheckpointError, match="never run here") as caught:
        describe(base)
    assert "trust_remote_code" not in str(caught.value)


@pytest.mark.parametrize("case", ["smollm3", "gemma3"])
def test_lists_that_do_not_fit_the_layers(case: str, tmp_path: Path) -> None:
    build_family(case).save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["layer_types"] = [*config["layer_types"], *config["layer_types"][:2]]
    edit_json(tmp_path / "base" / "config.json", **config)
    with pytest.raises(CheckpointError, match=r"layer_types|num_hidden_layers"):
        describe(tmp_path / "base")


def test_stray_layers_are_refused_and_other_tensors_are_told_of(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "base")
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors.update({"projection.weight": torch.ones(2)}))
    with pytest.warns(PrunecompWarning, match=r"does not use 1 of the stored tensors: projection.weight"):
        describe(folder)
    stray = {"model.layers.99.mlp.up_proj.weight": torch.ones(2, 2)}
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors.update(stray))
    with pytest.raises(CheckpointError, match=r"and the weights hold 99 .layers held: 0-5, 99"):
        prunecomp.score(folder, TOKENS)


def gpt2(folder: Path) -> Path:
    build_family("gpt2").save_pretrained(folder)
    return folder


def test_both_names_of_a_field_follow(tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "base")
    layers = json.loads((folder / "config.json").read_text())["n_layer"]
    edit_json(folder / "config.json", num_hidden_layers=layers, num_layers=layers)
    with pytest.warns(PrunecompWarning, match="num_layers seem to run by layers"):
        out = prunecomp.prune(folder, 1, TOKENS[:, :12] % 60, preset="paper").save(tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["n_layer"] == config["num_hidden_layers"] == config["num_layers"] == layers - 1
    assert len(theirs(out).transformer.h) == layers - 1
    edit_json(folder / "config.json", num_hidden_layers=layers + 1)
    with pytest.raises(CheckpointError, match=f"num_hidden_layers is {layers + 1} and n_layer is {layers}, two names"):
        describe(folder)


@pytest.mark.filterwarnings("ignore::prunecomp.errors.PrunecompWarning")
def test_fields_that_nobody_knows_follow_the_layers(base: Path) -> None:
    stored = {
        **json.loads((base / "config.json").read_text()),
        "n_layers": 6, "kinds": list("abcdef"), "global_layers": [0, 2, 5], "layer_ids": [0, 1, 2, 3, 4, 5],
        "by_layer": {"0": "x", "5": "y"}, "eos_token_id": [1, 2, 3, 4, 5, 6], "encoder_layers": 6, "width": 6,
        "hybrid_pattern": "MM*M-M",
        "inner": {"n_layers": 6, "layer_kinds": list("uvwxyz"), "factors": [1, 2, 3, 4, 5, 6]},
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(stored))
    config = read_config(base)
    pruned = prune_stored(stored, config, families.find("llama"), 6, (0, 1, 3, 5))
    assert {name: pruned[name] for name in pruned if pruned[name] != stored.get(name)} == {
        "layer_map": [0, 1, 3, 5],
        "num_hidden_layers": 4, "n_layers": 4, "kinds": list("abdf"), "global_layers": [0, 3],
        "layer_ids": [0, 1, 2, 3], "by_layer": {"0": "x", "3": "y"}, "hybrid_pattern": "MMMM",
        "inner": {"n_layers": 4, "layer_kinds": list("uvxz"), "factors": [1, 2, 3, 4, 5, 6]},
    }  # fmt: skip


def test_every_field_of_a_known_family_that_speaks_of_layers_is_known() -> None:
    """What the config class of a family has by that name is in the family's description, or says nothing of numbers."""
    about_norms = ("layer_norm", "layernorm", "layerdrop", "scale_attn_by_inverse_layer_idx")
    for kind in families.known_types():
        family = families.find(kind)
        known = {*family.layer_fields, *family.layer_periods, *(family.sparse_period or ())}
        fields = AutoConfig.for_model(kind).to_dict()
        strange = [f for f in fields if "layer" in f and f not in known and not any(word in f for word in about_norms)]
        assert not strange, (kind, strange)


def test_a_model_that_transformers_does_not_run_is_a_sentence(tmp_path: Path) -> None:
    """Its layers have a window, and the config has none."""
    folder = folder_of("qwen2", tmp_path / "model")
    edit_json(folder / "config.json", sliding_window=None)
    for name in ("score", "eval"):
        with pytest.raises(CheckpointError, match=r"does not run this qwen2 model .*sliding_window.*look at its"):
            COMMANDS[name](folder)
