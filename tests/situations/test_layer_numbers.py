"""A layer under its new number gives what it gave under its old one, or the run is refused before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

import prunecomp
from prunecomp.engine.run import Run
from prunecomp.errors import CheckpointError
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families
from tests.command_line import invoke
from tests.models import build, draw_tokens

GPT2 = {
    "vocab_size": 67, "n_layer": 6, "n_embd": 32, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 1,
    "scale_attn_by_inverse_layer_idx": True,
}  # fmt: skip


def divided_by_its_number() -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", **GPT2)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "update", lambda *_, **__: pytest.fail("the run had begun"))


@pytest.mark.usefixtures("nothing_runs")
def test_attention_that_is_divided_by_the_layers_number(generator: torch.Generator, tmp_path: Path) -> None:
    model = divided_by_its_number()
    tokens = draw_tokens(model, generator, windows=2, seqlen=12)
    model.save_pretrained(tmp_path / "base")
    for model_source in (model, tmp_path / "base"):
        with pytest.raises(
            CheckpointError, match=r"layer 1 of this gpt2 model would be another under .* attn\.scaling"
        ):
            prunecomp.prune(model_source, 2, tokens, preset="paper")
    with pytest.raises(CheckpointError, match="its new number 2"):
        prunecomp.prune(model, 2, tokens, candidates=[2, 3, 4], preset="paper")
    with pytest.raises(CheckpointError, match="depends on its number"):
        prunecomp.pruner_for(model, tokens)
    ids = tmp_path / "ids.npy"
    np.save(ids, tokens.numpy())
    done = invoke("prune", tmp_path / "base", "--layers", 2, "--calibration", ids, "--out", tmp_path / "o")
    assert done.exit_code == 3, done.output


def test_what_moves_no_layer_is_done(generator: torch.Generator, tmp_path: Path) -> None:
    """The last layers may go from it, and it may be scored and evaluated."""
    model = divided_by_its_number()
    tokens = draw_tokens(model, generator, windows=2, seqlen=12)
    prunecomp.score(model, tokens)
    prunecomp.evaluate(model, tokens)
    result = prunecomp.prune(model, 2, tokens, metric="given", given=[5, 4], preset="paper")
    loaded = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "out")).eval()
    decoder = Decoder(model)
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
        torch.testing.assert_close(loaded(input_ids=tokens).logits, expected)


@pytest.mark.usefixtures("nothing_runs")
def test_a_number_that_is_looked_at_while_running(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """No attribute tells of it: the layer is run under other numbers."""
    model = build("llama")
    for number, layer in enumerate(model.model.layers):
        layer.mlp.layer_idx = number
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: forward(self, x) * (1 + 0.01 * self.layer_idx))
    with pytest.raises(CheckpointError, match="layer 5 of this llama model gives something else under the number 0"):
        prunecomp.prune(model, 2, draw_tokens(model, generator), preset="paper")


@pytest.mark.parametrize(
    ("case", "without", "message"),
    [
        ("qwen2", "layer_lists", "layer_type is"),
        ("qwen2", "layer_count", "builds no model of this qwen2 config"),
    ],
)
@pytest.mark.usefixtures("nothing_runs")
def test_a_field_that_does_not_follow_is_told_before_the_run(
    case: str, without: str, message: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family described without a list, or with another name for the number of layers."""
    model = build(case)
    lacking = "number_of_layers" if without == "layer_count" else ()
    known = families.find(model.config.model_type)
    monkeypatch.setitem(families._by_type, known.model_types[0], replace(known, **{without: lacking}))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=message):
        prunecomp.prune(model, 2, draw_tokens(model, generator), preset="paper")


@pytest.mark.parametrize("case", ["llama", "qwen3"])
def test_pruned_in_place_saved_and_reloaded(case: str, generator: torch.Generator, tmp_path: Path) -> None:
    model = build(case)
    tokens = draw_tokens(model, generator, windows=2, seqlen=12)
    prunecomp.prune(model, 3, tokens, metric="given", given=[0, 2, 3], preset="paper").apply(model)
    model.save_pretrained(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, loaded(input_ids=tokens).logits)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(tokens[:1], **options), loaded.generate(tokens[:1], **options))
