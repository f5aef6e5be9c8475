"""llm-compressor, in whose environment this runs: pruned, or pruned and quantised, by one recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GemmaConfig, GemmaForCausalLM

from benchmarks.interop.exports import read
from prunecomp.errors import OptionError
from tests.integrations.common import CALIBRATION, LAYERS, MODEL, OPTIONS, example

pytest.importorskip("llmcompressor")
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier

from prunecomp.integrations.llm_compressor import LayerPruningModifier

CheckEqual = Callable[..., None]
QUANTISED = "tensors that are not those of our export, quantised"


def modifier(**given: Any) -> LayerPruningModifier:
    return LayerPruningModifier(**{"layers": LAYERS, "calibration": str(CALIBRATION), "options": OPTIONS, **given})


def test_a_recipe_prunes_as_the_command_line(
    exported: Path, unrepaired: Path, check_equal: CheckEqual, tmp_path: Path
) -> None:
    oneshot(model=str(MODEL), recipe=modifier(), output_dir=str(tmp_path / "out"))
    check_equal("a recipe that prunes", read(tmp_path / "out"), exported, unrepaired)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 16 - LAYERS


@pytest.fixture(scope="module")
def quantised(exported: Path, unrepaired: Path) -> list[Path]:
    """Both, quantised as in the page's example."""
    for folder in (exported, unrepaired):
        recipe = QuantizationModifier(targets=["Linear"], scheme="W8A8", ignore=["lm_head"])
        oneshot(model=str(folder), recipe=recipe, output_dir=str(folder / "w8a8"))
    return [folder / "w8a8" for folder in (exported, unrepaired)]


def test_the_example_prunes_and_quantises(quantised: list[Path], check_equal: CheckEqual, checkout: Path) -> None:
    exec(example("llm-compressor", "python"), {})
    found = read(checkout / "pruned-w8a8")
    assert any(tensor.dtype == torch.int8 for tensor in found.values())
    check_equal("the page's recipe, W8A8", found, *quantised, QUANTISED)


def test_a_yaml_recipe_prunes_and_quantises(quantised: list[Path], check_equal: CheckEqual, tmp_path: Path) -> None:
    quantise = "    QuantizationModifier:\n      targets: [Linear]\n      scheme: W8A8\n      ignore: [lm_head]\n"
    prune = (
        f"    LayerPruningModifier:\n      layers_left: {16 - LAYERS}\n      calibration: {CALIBRATION}\n"
        f"      options: {{samples: {OPTIONS['samples']}, seqlen: {OPTIONS['seqlen']}}}\n"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"both_stage:\n  both_modifiers:\n{prune}{quantise}")
    oneshot(model=str(MODEL), recipe=str(recipe), output_dir=str(tmp_path / "out"))
    check_equal("a YAML recipe, W8A8", read(tmp_path / "out"), *quantised, QUANTISED)


def test_the_data_of_oneshot_are_calibrated_on(exported: Path, check_equal: CheckEqual, tmp_path: Path) -> None:
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
    check_equal("a recipe, on the data of oneshot", read(tmp_path / "out"), tmp_path / "ours", exported)


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
