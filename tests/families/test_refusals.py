"""What cannot be folded is refused before anything is written; what a config leaves out is written out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prunecomp.checkpoint.config import prune_config, written_out
from prunecomp.errors import CheckpointError, FoldError
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import TABLE, families
from prunecomp.model.families.document import families_page
from prunecomp.subject import describe
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
    with pytest.raises(FoldError, match="use --fold up"):
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
    decoder = result.subject.load()
    decoder.family = dataclasses.replace(decoder.family, **forgotten)
    with pytest.raises(FoldError, match=r"layer \d cannot take a stream scaled by"):
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


def test_info_covers_layers_of_every_kind(tmp_path: Path) -> None:
    build("deepseek-v3").save_pretrained(tmp_path)
    seen = describe(tmp_path)
    assert seen["writers"] == [
        "self_attn.o_proj.weight", "mlp.down_proj.weight", "mlp.experts.down_proj",
        "mlp.shared_experts.down_proj.weight",
    ]  # fmt: skip
    assert "first_k_dense_replace" in seen["config_fields_that_follow_the_layers"]
    json.dumps(seen)
