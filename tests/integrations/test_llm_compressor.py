"""llm-compressor, in whose environment this runs: pruned, or pruned and quantised, by one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GemmaConfig, GemmaForCausalLM

from prunecomp.errors import OptionError
from tests.integrations.common import CALIBRATION, LAYERS, MODEL, OPTIONS, check_equal, cli_export, exported

pytest.importorskip("llmcompressor")
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier

from prunecomp.integrations.llm_compressor import LayerPruningModifier

__all__ = ["exported"]


def modifier(**given: Any) -> LayerPruningModifier:
    return LayerPruningModifier(**{"layers": LAYERS, "calibration": str(CALIBRATION), "options": OPTIONS, **given})


def test_a_recipe_prunes_as_the_command_line(exported: dict[str, torch.Tensor], tmp_path: Path) -> None:
    oneshot(model=str(MODEL), recipe=modifier(), output_dir=str(tmp_path / "out"))
    check_equal(load_file(tmp_path / "out" / "model.safetensors"), exported)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 16 - LAYERS


def test_a_yaml_recipe_prunes_and_quantises_what_quantising_the_export_gives(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    quantise = "    QuantizationModifier:\n      targets: [Linear]\n      scheme: W8A8\n      ignore: [lm_head]\n"
    prune = (
        f"    LayerPruningModifier:\n      layers_left: {16 - LAYERS}\n      calibration: {CALIBRATION}\n"
        f"      options: {{samples: {OPTIONS['samples']}, seqlen: {OPTIONS['seqlen']}}}\n"
    )
    recipe.write_text(f"both_stage:\n  both_modifiers:\n{prune}{quantise}")
    left = tmp_path / "one"
    oneshot(model=str(MODEL), recipe=str(recipe), output_dir=str(left))
    out = cli_export(tmp_path / "out")
    oneshot(
        model=str(out), recipe=QuantizationModifier(targets=["Linear"], scheme="W8A8", ignore=["lm_head"]),
        output_dir=str(tmp_path / "two"),
    )  # fmt: skip
    one, two = (load_file(folder / "model.safetensors") for folder in (left, tmp_path / "two"))
    assert any(tensor.dtype == torch.int8 for tensor in one.values())
    assert set(one) == set(two)
    for name, tensor in two.items():
        assert torch.equal(one[name], tensor), name


def test_the_data_of_oneshot_are_calibrated_on(tmp_path: Path) -> None:
    """The same windows by its loader as by ours, in the order in which it hands them over."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = torch.tensor(tokenizer(CALIBRATION.read_text())["input_ids"][: 4 * 64]).reshape(4, 64)
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    oneshot(
        model=str(MODEL), dataset=rows, recipe=LayerPruningModifier(layers=LAYERS), num_calibration_samples=4,
        shuffle_calibration_samples=False, max_seq_length=64, output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    import prunecomp

    prunecomp.prune(MODEL, LAYERS, ids, dtype="bfloat16").save(tmp_path / "ours")
    check_equal(*(load_file(tmp_path / name / "model.safetensors") for name in ("out", "ours")))


def test_a_model_whose_norms_were_replaced_is_refused(tmp_path: Path) -> None:
    config = GemmaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    GemmaForCausalLM(config).save_pretrained(tmp_path / "gemma")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "gemma")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    with pytest.raises(OptionError, match=r"Prune before oneshot"):
        oneshot(model=model, tokenizer=tokenizer, recipe=LayerPruningModifier(layers=1))
