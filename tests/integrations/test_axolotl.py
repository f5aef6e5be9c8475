"""axolotl, in whose environment this runs: it loads its base model from what was pruned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from prunecomp.errors import OptionError
from tests.integrations.common import CALIBRATION, LAYERS, MODEL, OPTIONS, check_equal, exported

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
pytest.importorskip("axolotl")
from axolotl.cli.config import load_cfg
from axolotl.loaders import ModelLoader

__all__ = ["exported"]


def configured(folder: Path, **changed: Any) -> Path:
    config = {
        "base_model": str(MODEL),
        "plugins": ["prunecomp.integrations.axolotl.LayerPruningPlugin"],
        "prunecomp_out": str(folder / "pruned"),
        "prunecomp": {"layers": LAYERS, "calibration": str(CALIBRATION), "dtype": "bfloat16", **OPTIONS},
        "datasets": [{"path": str(folder / "data.jsonl"), "type": "completion"}],
        "output_dir": str(folder / "trained"),
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "sequence_len": 64,
        "bf16": False,
        "special_tokens": {"pad_token": "<|endoftext|>"},
        **changed,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def test_the_model_that_it_trains_is_what_the_command_line_exports(
    exported: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    cfg = load_cfg(str(configured(tmp_path)))
    assert cfg.base_model == cfg.base_model_config == str(tmp_path / "pruned")
    model, _ = ModelLoader(cfg, AutoTokenizer.from_pretrained(cfg.base_model)).load()
    assert model.config.num_hidden_layers == 16 - LAYERS
    held = {name: tensor.to(exported[name].dtype) for name, tensor in model.state_dict().items() if name in exported}
    check_equal(held, exported)
    written = (tmp_path / "pruned" / "model.safetensors").stat().st_mtime_ns
    assert load_cfg(str(configured(tmp_path))).base_model == cfg.base_model
    assert (tmp_path / "pruned" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(OptionError, match="made with layers 5, not 4"):
        load_cfg(str(configured(tmp_path, prunecomp={"layers": 4, "calibration": str(CALIBRATION), **OPTIONS})))


def test_without_a_folder_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="prunecomp, prunecomp_out: give the options"):
        load_cfg(str(configured(tmp_path, prunecomp_out=None)))
