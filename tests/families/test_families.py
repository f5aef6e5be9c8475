"""Every family through the whole job: score, prune, fold, export, and reload in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import prunecomp
from prunecomp.checkpoint.writer import renamed
from prunecomp.engine.placement import model_shape
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families
from prunecomp.model.source import describe, open_source
from prunecomp.model.stack import LayerStack
from tests.families.configs import COMMON, FAMILIES, FOLLOWS
from tests.generation import assert_the_cache_holds
from tests.models import draw_tokens
from tests.seeds import seed
from tests.tolerances import ROUNDED_WEIGHTS

LOWER = {0: 0.5, 3: 3.0, 4: 0.8}
EPSILON = 1e-4
"""Float32: a fold moves a norm's epsilon e by e / (2 v) |1 - 1 / a^2| of what is read. Here e is at most 1e-5, the
least variance v of a stream is 1 (an embedding of size 2 behind a seam of 0.5), a is 0.5: 1.5e-5 a norm, for a few."""


def randomise(model: Any, offset: float) -> None:
    """Random weights; the gains of norms are in 0.5..1.5 once their ``offset`` is added, biases of size 0.1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "sinks" in name:
                parameter.normal_(std=0.1)
            elif parameter.ndim == 1 or "norm" in name:
                parameter.uniform_(0.5 - offset, 1.5 - offset)
            elif "embed" in name or "wte" in name or "wpe" in name or "lm_head" in name:
                parameter.normal_(std=2.0)
            else:
                parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
        for name, buffer in model.named_buffers():
            if "correction" in name:
                buffer.normal_(std=0.05)


def build(case: str, **overrides: Any) -> Any:
    """A float32 model in eval mode with random weights."""
    options = {**COMMON, **FAMILIES[case], **overrides}
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    offset = families.find(config.model_type).gain_offset
    torch.manual_seed(seed())
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, offset)
    return model.eval()


def pruned_by(model: Any, tokens: torch.Tensor, removals: dict[int, float], fold: str) -> prunecomp.PruneResult:
    """The result of a run, with scales far from 1 in place of those it found."""
    result = prunecomp.prune(
        model, len(removals), tokens, metric="given", given=list(removals), fold=fold, preset="paper"
    )
    stack = LayerStack.dense(result.stack.num_layers)
    for layer, scale in removals.items():
        stack = stack.remove(layer, scale)
    result.stack = stack
    return result


ROUTED = ("qwen3-moe", "qwen3-moe-period", "mixtral", "deepseek-v2", "deepseek-v3", "gpt-oss", "llama4")
"""Families whose router sends a token elsewhere for one rounding, where two experts are nearly tied."""


def worst_error(case: str, got: torch.Tensor, expected: torch.Tensor) -> float:
    """Of all tokens; of half of them where a router may send a few, and with them those that follow, elsewhere."""
    errors = token_errors(got, expected)
    return float(errors.median() if case in ROUTED else errors.max())


def token_errors(got: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """``|got - expected| / |expected|`` of each token's logits."""
    expected = expected.double()
    return (got.double() - expected).norm(dim=-1) / expected.norm(dim=-1)


@pytest.mark.parametrize("case", FAMILIES)
def test_decoder_is_the_model(case: str, generator: torch.Generator) -> None:
    model = build(case)
    tokens = draw_tokens(model, generator, windows=2, seqlen=14)
    decoder = Decoder(model)
    with decoder.evaluating():
        expected = model(input_ids=tokens).logits
        got = decoder.logits(decoder.run(LayerStack.dense(8), tokens))
    assert torch.equal(got, expected)
    scores = prunecomp.score(model, tokens).scores
    assert set(scores) == set(range(8))


FOLDED = [
    pytest.param(case, fold, marks=[] if (number + (fold == "up")) % 2 else [pytest.mark.slow])
    for number, case in enumerate(FAMILIES)
    for fold in ("up", "down")
]
"""Every family; each form of the fold at every other in the quick run."""


@pytest.mark.parametrize(("case", "fold"), FOLDED)
def test_export_is_the_seam_model(case: str, fold: str, generator: torch.Generator, tmp_path: Path) -> None:
    model = build(case)
    tokens = draw_tokens(model, generator, windows=2, seqlen=14)
    result = pruned_by(model, tokens, LOWER, fold)
    out = result.save(tmp_path / "out")
    decoder = Decoder(model)
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
        loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        got = loaded(input_ids=tokens).logits
    assert worst_error(case, got, expected) < EPSILON
    config = json.loads((out / "config.json").read_text())
    count = families.find(model.config.model_type).layer_count
    for name, value in {count: 5, **FOLLOWS.get(case, {})}.items():
        assert config[name] == value, name
    assert_the_cache_holds(loaded, tokens[:1, :11], 6)  # longer than a window


@pytest.mark.parametrize("case", ["gemma3", "olmo3", "deepseek-v3", "llama4", "gpt2", "falcon-40b"])
def test_a_model_pruned_in_place_is_the_exported_one(case: str, generator: torch.Generator, tmp_path: Path) -> None:
    model = build(case)
    tokens = draw_tokens(model, generator, windows=2, seqlen=14)
    result = pruned_by(model, tokens, LOWER, "up")
    loaded = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "out"), dtype=torch.float32).eval()
    result.apply(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, loaded(input_ids=tokens).logits)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(tokens[:1], **options), loaded.generate(tokens[:1], **options))


HOMES = ("gemma2", "gemma3", "qwen3-moe", "olmo2", "cohere", "stablelm", "gpt2", "gpt-neox", "falcon-40b",
         "deepseek-v3", "gpt-oss", "llama4")  # fmt: skip
"""One or two of every kind of layer, which the quick run takes."""
EVERY = [case if case in HOMES else pytest.param(case, marks=pytest.mark.slow) for case in FAMILIES]


@pytest.mark.parametrize("case", EVERY)
def test_a_folder_is_pruned_like_the_model(case: str, generator: torch.Generator, tmp_path: Path) -> None:
    """Resident and streamed, with an attention of its own choice; the export is read back as it is written."""
    model = build(case)
    tokens = draw_tokens(model, generator, windows=3, seqlen=14)
    model.save_pretrained(tmp_path / "base")
    assert describe(tmp_path / "base")["layers"] == 8
    options = {"metric": "bi", "candidates": [0, 2, 3, 4, 7]}
    expected = prunecomp.prune(model, 3, tokens, **options, preset="paper")
    resident = prunecomp.prune(tmp_path / "base", 3, tokens, **options, preset="paper")
    assert resident.removed == expected.removed
    out = resident.save(tmp_path / "out")
    assert resident.verified is not None
    assert resident.verified.logits_error < EPSILON
    shape = model_shape(model, families.find(model.config.model_type), torch.float32)
    room = shape.outer_nbytes + 4 * shape.layer_nbytes + shape.activation_nbytes(tokens.numel())
    streamed = prunecomp.prune(
        tmp_path / "base", 3, tokens, device_memory=room, disk=tmp_path, **options, preset="paper"
    )
    assert streamed.placement.group_size is not None
    assert streamed.scales == resident.scales
    again = streamed.save(tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("removed", "left"),
    [
        ([1, 2, 3, 4], {"no_rope_layer_interval": 4, "interleave_moe_layer_step": 2}),
        ([3, 4], {"interleave_moe_layer_step": 2}),
        ([0, 3, 4], {}),
    ],
)
def test_a_period_stays_in_the_config_where_it_stays_true(
    removed: list[int], left: dict[str, int], generator: torch.Generator, tmp_path: Path
) -> None:
    """Software that knows Llama 4's periods and not its lists reads the model right where whole periods are gone."""
    model = build("llama4")
    model.config.no_rope_layer_interval, model.config.interleave_moe_layer_step = 4, 2
    model.save_pretrained(tmp_path / "base")
    stored = json.loads((tmp_path / "base" / "config.json").read_text())
    assert (stored["no_rope_layer_interval"], stored["interleave_moe_layer_step"]) == (4, 2)
    tokens = draw_tokens(model, generator, windows=2, seqlen=14)
    pruned_by(tmp_path / "base", tokens, dict.fromkeys(removed, 1.5), "up").save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    periods = ("no_rope_layer_interval", "interleave_moe_layer_step")
    assert {name: config[name] for name in periods if name in config} == left


STORED_OTHERWISE = ["mixtral", "qwen3-moe", "deepseek-v3", "gpt-neox"]


@pytest.mark.parametrize("group_size", [None, 1])
@pytest.mark.parametrize("case", STORED_OTHERWISE)
def test_files_keep_the_names_they_have(
    case: str, group_size: int | None, generator: torch.Generator, tmp_path: Path
) -> None:
    """One tensor an expert in the files, one for all experts in the model."""
    model = build(case)
    tokens = draw_tokens(model, generator, windows=2, seqlen=14)
    model.save_pretrained(tmp_path / "base")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    assert set(stored) != set(model.state_dict())
    result = pruned_by(tmp_path / "base", tokens, LOWER, "down")
    if group_size is not None:
        result.model_source = open_source(
            tmp_path / "base", dtype="auto", device="cpu", tokenizer=None, allow_pickle=False
        )
        result.model_source.load(group_size)
    out = result.save(tmp_path / "out")
    layers = families.find(model.config.model_type).layers
    renumber = {layer: number for number, layer in enumerate(result.stack.alive)}
    assert set(load_file(out / "model.safetensors")) == {renamed(name, layers, renumber) for name in stored} - {None}
    decoder = Decoder(model)
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
        got = AutoModelForCausalLM.from_pretrained(out).eval()(input_ids=tokens).logits
    assert worst_error(case, got, expected) < EPSILON


@pytest.mark.parametrize("case", ["gpt2", "opt"])
def test_files_without_the_backbones_prefix_are_read(case: str, generator: torch.Generator, tmp_path: Path) -> None:
    model = build(case)
    tokens = draw_tokens(model, generator, windows=2, seqlen=14)
    model.base_model.save_pretrained(tmp_path / "base")
    result = pruned_by(tmp_path / "base", tokens, LOWER, "up")
    decoder = Decoder(model)
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
        loaded = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "out")).eval()
        assert worst_error(case, loaded(input_ids=tokens).logits, expected) < EPSILON


@pytest.mark.parametrize("case", EVERY)
def test_export_in_bfloat16(case: str, generator: torch.Generator, tmp_path: Path) -> None:
    """In float32, so that all that is left is one rounding of each folded weight; the median over tokens, for a router
    near a tie sends a token elsewhere for one rounding."""
    model = build(case).to(torch.bfloat16)
    tokens = draw_tokens(model, generator, windows=2, seqlen=14)
    result = pruned_by(model, tokens, LOWER, "up")
    out = result.save(tmp_path / "out")
    decoder = Decoder(model.float())
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
        loaded = AutoModelForCausalLM.from_pretrained(out).eval()
        assert loaded.dtype == torch.bfloat16
        assert loaded(input_ids=tokens).logits.isfinite().all()
        got = loaded.float()(input_ids=tokens).logits
    assert float(token_errors(got, expected).median()) < ROUNDED_WEIGHTS * torch.finfo(torch.bfloat16).eps
