"""A family that prunecomp does not know, described and added by its user."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import prunecomp
from prunecomp.errors import CheckpointError, FoldError
from prunecomp.model.families import families
from prunecomp.model.source import describe
from tests.families.configs import COMMON
from tests.families.test_families import EPSILON, LOWER, pruned_by, randomise, token_errors
from tests.models import draw_tokens


class HouseConfig(LlamaConfig):
    model_type = "house_llama"


class HouseForCausalLM(LlamaForCausalLM):
    config_class = HouseConfig


AutoConfig.register("house_llama", HouseConfig)
AutoModelForCausalLM.register(HouseConfig, HouseForCausalLM)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    model = HouseForCausalLM(HouseConfig(**COMMON, window_of_layer=list(range(8)))).eval()
    randomise(model, 0.0)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_family_of_ones_own(base: Path, generator: torch.Generator, tmp_path: Path) -> None:
    model = HouseForCausalLM.from_pretrained(base)
    tokens = draw_tokens(model, generator, windows=2, seqlen=14)
    with pytest.raises(CheckpointError, match=r"'house_llama' is not a known family; .* prunecomp\.families\.register"):
        prunecomp.score(base, tokens)
    house = dataclasses.replace(
        families.find("llama"),
        name="House",
        model_types=("house_llama",),
        layer_lists=("layer_types", "window_of_layer"),
    )
    registry = prunecomp.families
    before = dict(registry._by_type)
    try:
        registry.register(house)
        assert describe(base)["family"] == "House"
        result = pruned_by(base, tokens, LOWER, "up")
        out = result.save(tmp_path / "out")
        assert json.loads((out / "config.json").read_text())["window_of_layer"] == [1, 2, 5, 6, 7]
        decoder = result.model_source.load()
        with decoder.evaluating():
            expected = decoder.logits(decoder.run(result.stack, tokens))
            got = AutoModelForCausalLM.from_pretrained(out).eval()(input_ids=tokens).logits
        assert float(token_errors(got, expected).max()) < EPSILON
        registry.register(dataclasses.replace(house, writers=("self_attn.o_proj",)))
        with pytest.raises(FoldError, match=r"layer \d cannot take a stream scaled by"):
            pruned_by(base, tokens, LOWER, "up").save(tmp_path / "wrong")
    finally:
        registry._by_type = before
