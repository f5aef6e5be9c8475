"""Weights that are quantised, and a config that does not say so: refused by name, before any number is looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.errors import CheckpointError
from prunecomp.model.source import describe
from tests.situations.folders import TOKENS, edit_json, edit_tensors, folder_of


def as_fp8(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = torch.ones(())


@pytest.mark.parametrize(
    ("file", "stated", "kind"),
    [
        ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}, "FP8"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4", "group_size": 16}}, "NVFP4"),
        ("quantize_config.json", {"bits": 4, "group_size": 128}, "4"),
        ("quant_config.json", {"zero_point": True, "version": "GEMM"}, "GEMM"),
    ],
)
def test_a_file_of_its_own(tmp_path: Path, file: str, stated: dict[str, Any], kind: str) -> None:
    folder = folder_of("llama", tmp_path / "base")
    edit_tensors(folder / "model.safetensors", as_fp8)
    (folder / file).write_text(json.dumps(stated))
    for run in (
        describe,
        lambda f: prunecomp.plan(f, 1),
        lambda f: prunecomp.prune(f, 1, "no such file", preset="paper"),
    ):
        with pytest.raises(CheckpointError, match=rf"{file} says how weights are quantised \({kind}"):
            run(folder)
    edit_json(folder / "config.json", quantization_config={"quant_method": "modelopt", "quant_algo": kind})
    with pytest.raises(CheckpointError, match=r"quantised \(modelopt\), a format that is not read"):
        describe(folder)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32])
def test_numbers_that_mean_nothing_by_themselves(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = folder_of("llama", tmp_path / "base")
    name = "model.layers.1.mlp.down_proj.weight"
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    for run in (describe, lambda f: prunecomp.score(f, TOKENS), lambda f: prunecomp.evaluate(f, TOKENS)):
        with pytest.raises(CheckpointError, match=f"{name} is stored in .*states no quantization_config"):
            run(folder)


STATED: list[dict[str, Any]] = [
    {"quant_method": "gptq", "bits": 4, "group_size": 32},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {"quant_method": "bitsandbytes", "load_in_8bit": True},
    {"quant_method": "fp8", "activation_scheme": "dynamic"},
    {"quant_method": "mxfp4"},
]


@pytest.mark.parametrize("stated", STATED, ids=lambda stated: "-".join(list(stated)[:2]))
def test_plain_weights_under_a_config_that_says_they_are_quantised(tmp_path: Path, stated: dict[str, Any]) -> None:
    """As a merge or a conversion leaves them behind; the advice, as it is given, makes of them what they are."""
    folder = folder_of("llama", tmp_path / "base")
    right = prunecomp.evaluate(folder, TOKENS)
    edit_json(folder / "config.json", quantization_config=stated)
    for run in (
        lambda f: prunecomp.prune(f, 1, "no such file", preset="paper"),
        lambda f: prunecomp.evaluate(f, TOKENS),
    ):
        with pytest.raises(CheckpointError, match=r"is stored so: take it out of config\.json"):
            run(folder)
    edit_json(folder / "config.json", quantization_config=None)
    assert prunecomp.evaluate(folder, TOKENS) == right
