"""What cannot be folded is refused before anything is written; what a config leaves out is written out."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from prunecomp.checkpoint import export
from prunecomp.errors import CheckpointError, FoldError, OutputError, PrunecompWarning
from prunecomp.model.config import prune_config, prune_generation, written_out
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import TABLE, families
from prunecomp.model.families.document import families_page
from prunecomp.model.source import describe
from tests.families.configs import COMMON, FAMILIES
from tests.families.test_families import LOWER, build, pruned_by
from tests.models import draw_tokens

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_page_of_families_is_made_from_the_adapters() -> None:
    assert PAGE.read_text(encoding="utf-8") == families_page(TABLE), "python -m prunecomp.model.families > docs/..."


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"do_layer_norm_before": False}, "has no final norm"), ({"word_embed_proj_dim": 16}, "has model.decoder.proj")],
)
def test_opt_without_a_clean_stream_is_refused(options: dict[str, Any], reason: str) -> None:
    config = AutoConfig.for_model(**{**COMMON, **FAMILIES["opt"], **options})
    with pytest.raises(CheckpointError, match=reason):
        Decoder(AutoModelForCausalLM.from_config(config))


def test_a_tied_head_behind_a_norm_with_no_gain_folds_up_only(generator: torch.Generator, tmp_path: Path) -> None:
    config = AutoConfig.for_model(**{**COMMON, **FAMILIES["opt"], "layer_norm_elementwise_affine": False})
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = draw_tokens(model, generator, windows=2, seqlen=14)
    with pytest.raises(FoldError, match="go on with --resume --fold up"):
        pruned_by(model, tokens, LOWER, "down").save(tmp_path / "out")
    pruned_by(model, tokens, LOWER, "up").save(tmp_path / "up")


@pytest.mark.parametrize(
    ("case", "forgotten"),
    [
        ("olmo2", {"raw_readers": ()}),
        ("gemma2", {"gain_offset": 0.0}),
        ("deepseek-v3", {"writers": ("self_attn.o_proj", "mlp.down_proj", "mlp.experts.down_proj")}),
        ("gpt-oss", {"writers": ("self_attn.o_proj", "mlp.experts.down_proj")}),
    ],
)
def test_an_adapter_that_forgets_something_is_caught_by_the_proof(
    case: str, forgotten: dict[str, Any], generator: torch.Generator, tmp_path: Path
) -> None:
    model = build(case)
    result = pruned_by(model, draw_tokens(model, generator, windows=2, seqlen=14), LOWER, "up")
    decoder = result.model_source.load()
    decoder.family = dataclasses.replace(decoder.family, **forgotten)
    with pytest.raises(FoldError, match=r"layer \d cannot take a stream scaled by"):
        result.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_experts_are_noticed_as_the_export_is_read_back(
    dtype: torch.dtype, generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where single tokens may go to other experts for a rounding, the median over tokens tells."""
    model = build("deepseek-v3").to(dtype)
    result = pruned_by(model, draw_tokens(model, generator, windows=2, seqlen=14), LOWER, "up")
    plan, proofs = result.prove()
    wrong = dict(plan.factors)
    wrong["model.layers.7.mlp.experts.down_proj"] *= 3.0
    monkeypatch.setattr(export, "proved_fold", lambda *_: (dataclasses.replace(plan, factors=wrong), proofs))
    with pytest.raises(OutputError, match="its logits are off by"):
        result.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_a_config_leaves_out_is_written_out_before_it_is_cut() -> None:
    stored = {**COMMON, **FAMILIES["gemma3"]}
    family = families.find("gemma3_text")
    explicit = written_out(stored, AutoConfig.for_model(**stored), family)
    pruned = prune_config(explicit, family, 8, (1, 2, 5, 6, 7))
    assert pruned["layer_types"] == [f"{kind}_attention" for kind in ("sliding", "full", "full", "sliding", "sliding")]
    assert "sliding_window_pattern" not in pruned
    assert "layer_types" not in stored


def test_layers_that_predict_further_tokens_are_dropped_with_a_warning(
    generator: torch.Generator, tmp_path: Path
) -> None:
    """DeepSeek-V3 stores them behind the last layer, where transformers does not look."""
    model = build("deepseek-v3")
    model.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    further = {name.replace(".7.", ".8."): t.clone() for name, t in tensors.items() if ".layers.7." in name}
    assert further
    save_file({**tensors, **further, "model.layers.8.eh_proj.weight": torch.randn(32, 64)}, file)
    result = pruned_by(tmp_path / "base", draw_tokens(model, generator, windows=2, seqlen=14), LOWER, "up")
    with pytest.warns(PrunecompWarning, match="num_nextn_predict_layers is 1 and becomes 0"):
        out = result.save(tmp_path / "out")
    layers = {int(name.split(".")[2]) for name in load_file(out / "model.safetensors") if ".layers." in name}
    assert layers == set(range(5))


def test_layers_that_share_keys_and_values_are_refused() -> None:
    config = AutoConfig.for_model(**{**COMMON, "model_type": "llama", "num_kv_shared_layers": 3})
    with pytest.raises(CheckpointError, match="the last 3 layers of this model take keys and values from earlier ones"):
        Decoder(AutoModelForCausalLM.from_config(config))


def test_generation_options_that_name_layers_are_left_out() -> None:
    kept = {"temperature": 0.7, "eos_token_id": [1, 2], "assistant_early_exit": None}
    with pytest.warns(PrunecompWarning, match="generation_config.json: dola_layers is left out"):
        assert prune_generation({**kept, "dola_layers": "high"}) == kept
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prune_generation(kept) == kept


def test_info_covers_layers_of_every_kind(tmp_path: Path) -> None:
    build("deepseek-v3").save_pretrained(tmp_path)
    seen = describe(tmp_path)
    assert seen["writers"] == [
        "self_attn.o_proj.weight", "mlp.down_proj.weight", "mlp.experts.down_proj",
        "mlp.shared_experts.down_proj.weight",
    ]  # fmt: skip
    assert "first_k_dense_replace" in seen["config_fields_that_follow_the_layers"]
    json.dumps(seen)
