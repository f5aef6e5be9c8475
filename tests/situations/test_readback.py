"""An export is held to the base as transformers loads it, and in 16 bits as strictly as in 32."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import prunecomp
import prunecomp.model.source.folder
import prunecomp.model.source.reference as reference
from prunecomp.checkpoint import export
from prunecomp.checkpoint.fold import FoldPlan
from prunecomp.errors import CheckpointError, OutputError
from prunecomp.model.decoder import Decoder
from tests.families.test_families import build as build_family
from tests.models import build, draw_tokens
from tests.situations.folders import TOKENS, edit_json, folder_of

HALVES = [torch.float16, torch.bfloat16]
Wrong = Callable[[FoldPlan], FoldPlan]


def pruned(generator: torch.Generator, dtype: torch.dtype, **options: Any) -> prunecomp.PruneResult:
    model = build("mistral").to(dtype)
    return prunecomp.prune(
        model, 2, draw_tokens(model, generator), metric="given", given=[1, 3], **options, preset="paper"
    )


def order(plan: FoldPlan) -> FoldPlan:
    return replace(plan, renumber={0: 0, 4: 1, 2: 2, 5: 3})


def neighbour(plan: FoldPlan) -> FoldPlan:
    return replace(plan, renumber={0: 0, 1: 1, 4: 2, 5: 3})


def one_percent(plan: FoldPlan) -> FoldPlan:
    """Of one tensor; the digests are of what is written."""
    name = "model.layers.5.mlp.down_proj.weight"
    return replace(plan, factors={**plan.factors, name: 1.01 * plan.factors[name]})


def one_forgotten(plan: FoldPlan) -> FoldPlan:
    return replace(plan, factors=dict(list(plan.factors.items())[1:]))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("wrong", [order, neighbour, one_percent, one_forgotten])
def test_wrong_weights_are_refused_in_16_bits(
    wrong: Wrong, dtype: torch.dtype, generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = export.write_tensors
    monkeypatch.setattr(
        export, "write_tensors", lambda f, s, layers, plan, *rest: right(f, s, layers, wrong(plan), *rest)
    )
    with pytest.raises(OutputError, match=r"of the base model|is missing"):
        pruned(generator, dtype).save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("fold", ["up", "down"])
def test_a_seam_that_is_off_by_a_percent_is_refused(
    fold: str, dtype: torch.dtype, generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = pruned(generator, dtype, fold=fold)
    plan, proofs = result.prove()
    monkeypatch.setattr(export, "proved_fold", lambda *given: (plan, proofs))
    seams = list(result.stack.seams)
    seams[1] *= 1.01
    result.stack = replace(result.stack, seams=tuple(seams))
    with pytest.raises(OutputError, match="the fold does not compute what was measured"):
        result.save(tmp_path / "out")


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "change",
    [{"rope_parameters": {"rope_type": "default", "rope_theta": 11000.0}}, {"rms_norm_eps": 1e-3},
     {"sliding_window": 9}, {"hidden_act": "gelu"}],
)  # fmt: skip
def test_a_config_that_says_another_function_is_refused(
    change: dict[str, Any],
    dtype: torch.dtype,
    generator: torch.Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every one of them moves logits by less than 16-bit activations do, or not by much more."""
    right = export.prune_stored
    monkeypatch.setattr(export, "prune_stored", lambda *some: {**right(*some), **change})
    with pytest.raises(OutputError, match="the export does not compute what was measured"):
        pruned(generator, dtype).save(tmp_path / "out")


@pytest.mark.parametrize("short", [False, True])
def test_the_record_says_who_read(
    short: bool, generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory holds no whole model, our own reading is streamed, a layer at a time."""
    model = build("qwen2-tied").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(tmp_path / "base", 2, tokens, metric="given", given=[1, 3], fold="down", preset="paper")
    if short:
        monkeypatch.setattr(reference, "free_host_memory", lambda: 1000)
    verified = json.loads((result.save(tmp_path / "out") / "prunecomp.json").read_text())["verified"]
    assert verified["base"] == ("prunecomp" if short else "transformers")
    assert 0 < verified["rounding"] <= verified["logits_error"] + verified["tolerance"]


def test_a_head_that_is_tied_only_here_is_refused(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "base")
    right = prunecomp.model.source.folder.load_decoder

    def tying(*some: Any, **options: Any) -> Decoder:
        decoder = right(*some, **options)
        decoder.head.weight = decoder.embedding.weight
        return decoder

    monkeypatch.setattr(prunecomp.model.source.folder, "load_decoder", tying)
    with pytest.raises(CheckpointError, match="transformers does not tie the head"):
        prunecomp.evaluate(tmp_path / "base", draw_tokens(model, generator))


def test_a_tensor_that_is_another_only_here_is_refused(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "base")
    right = prunecomp.model.source.folder.load_decoder

    def other(*some: Any, **options: Any) -> Decoder:
        decoder = right(*some, **options)
        decoder.final_norm.weight.data = decoder.final_norm.weight.data * 1.001
        return decoder

    monkeypatch.setattr(prunecomp.model.source.folder, "load_decoder", other)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is not what transformers reads there"):
        prunecomp.score(tmp_path / "base", draw_tokens(model, generator))


@pytest.mark.parametrize("in_memory", [True, False])
def test_perplexity_is_of_what_was_written(in_memory: bool, generator: torch.Generator, tmp_path: Path) -> None:
    model = build("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    tokens = draw_tokens(model, generator)
    model_source = model if in_memory else tmp_path / "base"
    result = prunecomp.prune(model_source, 2, tokens, metric="given", given=[1, 3], eval=tokens, preset="paper")
    assert result.perplexity is not None
    before = result.record()["perplexity"]
    assert before["measured_on"].startswith("the model with its seams")
    out = result.save(tmp_path / "out")
    dtype = str(result.model_source.dtype).removeprefix("torch.")
    record = json.loads((out / "prunecomp.json").read_text())["perplexity"]
    assert record["measured_on"] == "the export"
    assert record["dense"] == before["dense"]
    assert record["pruned"] == prunecomp.evaluate(out, tokens, dtype=dtype)
    assert record["pruned"] != before["pruned"]
    assert f"{record['pruned']:.2f} after (measured on the export)" in (out / "README.md").read_text()


def test_a_model_in_16_bits_with_rounded_frequencies_is_no_error(generator: torch.Generator, tmp_path: Path) -> None:
    """``model.to(torch.bfloat16)`` rounds the rotary frequencies too; whoever loads the export has them in float32."""
    out = pruned(generator, torch.bfloat16).save(tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("fields", [{"return_dict": False}, {"torchscript": True}, {"output_hidden_states": True}])
def test_what_a_model_returns_is_up_to_its_config(fields: dict[str, Any], tmp_path: Path) -> None:
    """With ``return_dict: false`` models of transformers cannot read their own backbone: ours must not need it."""
    base = folder_of("llama", tmp_path / "base")
    edit_json(base / "config.json", **fields)
    out = prunecomp.prune(base, 2, TOKENS, preset="paper").save(tmp_path / "out")
    assert prunecomp.evaluate(out, TOKENS) > 1


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3"])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_model_stored_in_16_bits_is_measured_in_32(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The multiplier of Gemma's embedding is rounded with a model in 16 bits, and is exact in one in 32."""
    torch.manual_seed(3)
    base = tmp_path / "base"
    build_family(family).to(dtype).save_pretrained(base)
    out = prunecomp.prune(base, 2, TOKENS % 67, dtype="float32", preset="paper").save(tmp_path / "out")
    assert prunecomp.evaluate(out, TOKENS % 67, dtype="float32") > 1
