"""axolotl, in whose environment this runs: it loads its base model from what was pruned."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from benchmarks.interop.exports import read
from prunecomp.errors import OptionError
from tests.integrations.common import LAYERS, example

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
pytest.importorskip("axolotl")
from axolotl.cli.config import load_cfg
from axolotl.loaders import ModelLoader


def configured(folder: Path, **changed: Any) -> Path:
    """The page's example and what else a training has to be told, changed."""
    config = {
        **yaml.safe_load(example("axolotl", "yaml")),
        "datasets": [{"path": str(folder / "data.jsonl"), "type": "completion"}],
        "output_dir": str(folder / "trained"),
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "sequence_len": 64,
        "bf16": False,
        "special_tokens": {"pad_token": "<|endoftext|>"},
    }
    config["prunecomp"] = {**config["prunecomp"], "dtype": "bfloat16", **changed.pop("prunecomp", {})}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **changed}))
    return folder / "config.yaml"


def test_the_model_that_it_trains_is_what_the_command_line_exports(
    exported: Path, unrepaired: Path, check_equal: Callable[..., None], checkout: Path
) -> None:
    cfg = load_cfg(str(configured(checkout)))
    assert cfg.base_model == cfg.base_model_config == "pruned"
    model, _ = ModelLoader(cfg, AutoTokenizer.from_pretrained(cfg.base_model)).load()
    assert model.config.num_hidden_layers == 16 - LAYERS
    meant = read(exported)
    held = {name: tensor.to(meant[name].dtype) for name, tensor in model.state_dict().items() if name in meant}
    check_equal("the page's configuration, loaded to be trained", held, exported, unrepaired)
    written = (checkout / "pruned" / "model.safetensors").stat().st_mtime_ns
    assert load_cfg(str(configured(checkout))).base_model == cfg.base_model
    assert (checkout / "pruned" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(OptionError, match="made with layers 5, not 4"):
        load_cfg(str(configured(checkout, prunecomp={"layers": 4})))


def test_without_a_folder_it_says_what_to_give(checkout: Path) -> None:
    with pytest.raises(OptionError, match="prunecomp, prunecomp_out: give the options"):
        load_cfg(str(configured(checkout, prunecomp_out=None)))
