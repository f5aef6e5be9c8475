"""Refit and joint fit: against float64 from the formula with full re-runs, and under every way to run."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import prunecomp
from prunecomp.errors import OptionError
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.pruning.journal import Journal, journal_path
from prunecomp.repair import demand_of
from tests.engine.test_streaming import needed, shape_of
from tests.models import build, draw_tokens
from tests.oracles import refit
from tests.tolerances import error, relative

GAPS = ([3], [2, 4], [1, 2, 5], [0, 3])
"""A single layer; two gaps around one survivor; two neighbours, and the top; the bottom, where nothing lies below."""


def repaired(model: Any, tokens: Any, removed: list[int], **options: Any) -> prunecomp.PruneResult:
    return prunecomp.prune(model, len(removed), tokens, metric="given", given=removed, compensation="none", **options)


@pytest.mark.parametrize("kind", ["refit", "joint"])
@pytest.mark.parametrize("removed", GAPS, ids=str)
def test_a_repair_agrees_with_float64_on_full_reruns(
    model: Any, generator: torch.Generator, removed: list[int], kind: str
) -> None:
    model.double()
    tokens = draw_tokens(model, generator, windows=6)
    result = repaired(model, tokens, removed, repair=kind, ridge=1.0)
    expected, scales = refit.repair(model, list(tokens), removed, 1.0, kind == "joint")
    assert result.repair is not None
    assert [gap.scale for gap in result.repair.gaps] == pytest.approx(scales, rel=1e-5)
    decoder = Decoder(model)
    with decoder.evaluating():
        logits = decoder.logits(decoder.run(result.stack, tokens))
        # New weights are kept in float32: one rounding of each, of which a layer's output is a sum; norms and rotary
        # embeddings inside transformers compute in it.
        assert error(logits, expected(input_ids=tokens, use_cache=False).logits) < 64 * torch.finfo(torch.float32).eps


def test_padding_is_no_part_of_the_fit(generator: torch.Generator) -> None:
    model = build("llama").double()
    lengths = [24, 19, 17, 11, 8, 5]
    tokens = draw_tokens(model, generator, windows=6, seqlen=24)
    rows = [row[:n] for row, n in zip(tokens, lengths, strict=True)]
    padded = tokens.masked_fill(torch.arange(24) >= torch.tensor(lengths).unsqueeze(1), -1)
    result = repaired(model, padded, [2, 4], repair="joint", ridge=1.0)
    expected, _ = refit.repair(model, rows, [2, 4], 1.0, joint=True)
    decoder = Decoder(model)
    with decoder.evaluating():
        logits = decoder.logits(decoder.run(result.stack, tokens))
        assert error(logits, expected(input_ids=tokens, use_cache=False).logits) < 64 * torch.finfo(torch.float32).eps


def test_the_record_says_how_far_the_seam_is_off(generator: torch.Generator) -> None:
    model = build("llama").double()
    tokens = draw_tokens(model, generator, windows=8)
    result = repaired(model, tokens, [3], repair="refit", ridge=0.3)
    assert result.repair is not None
    gap = result.repair.gaps[0]
    decoder = Decoder(model)
    with decoder.evaluating():
        wanted = decoder.run(dense_below(6, 4), tokens)
        size = wanted.square().mean(dim=-1, keepdim=True).sqrt()
        for stack, told in ((dense_below(6, 3), gap.error_before), (result.stack.below(3), gap.error_after)):
            off = (wanted - gap.scale * decoder.run(stack, tokens)) / size
            found = math.sqrt(float(off.square().sum()) / float((wanted / size).square().sum()))
            assert told == pytest.approx(found, rel=1e-4)
    assert gap.error_after < gap.error_before


def dense_below(num_layers: int, position: int) -> LayerStack:
    return LayerStack.dense(num_layers).below(position)


@pytest.mark.parametrize(("kind", "given"), [("refit", [3, 2, 4]), ("joint", [5, 0, 2]), ("auto", [4, 1])])
def test_exports_equal_the_repaired_model(
    model: Any, generator: torch.Generator, tmp_path: Path, kind: str, given: list[int]
) -> None:
    tokens = draw_tokens(model, generator, windows=8)
    result = repaired(model, tokens, given, repair=kind)
    decoder = Decoder(model)
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
        check_exports(result, model, tokens, expected, tmp_path)


def check_exports(
    result: prunecomp.PruneResult, model: Any, tokens: torch.Tensor, expected: torch.Tensor, folder: Path
) -> torch.Tensor:
    """Exports in both forms, and the model with the result in it, have the ``expected`` logits; returns the last's."""
    for form in ("up", "down"):
        result.options.__dict__["fold"] = form
        loaded = AutoModelForCausalLM.from_pretrained(result.save(folder / form))
        assert error(loaded(input_ids=tokens).logits, expected) < 8 * relative(torch.float32)
    changed = copy.deepcopy(model)
    result.apply(changed)
    with torch.no_grad():
        logits: torch.Tensor = changed(input_ids=tokens).logits
    assert error(logits, expected) < 8 * relative(torch.float32)
    return logits


def test_weights_stay_as_they_were(model: Any, generator: torch.Generator) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    repaired(model, draw_tokens(model, generator), [2, 3], repair="joint", eval=draw_tokens(model, generator))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("kind", ["joint", "auto"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_uncached_streamed_and_resumed_runs_agree(
    generator: torch.Generator, tmp_path: Path, dtype: str, kind: str
) -> None:
    model = build("llama", mlp_bias=True)
    model.save_pretrained(tmp_path / "base")
    tokens = draw_tokens(model, generator, windows=9, seqlen=33)
    options: dict[str, Any] = {"compensation": "lsq", "repair": kind, "dtype": dtype, "eval": tokens}
    plain = prunecomp.prune(tmp_path / "base", 3, tokens, **options)
    full = prunecomp.prune(tmp_path / "base", 3, tokens, cache=False, **options)
    journal = journal_path(tmp_path / "resumed")
    prunecomp.prune(tmp_path / "base", 3, tokens, journal=journal, **options)  # never saved: the journal stays
    halve(journal)
    resumed = prunecomp.prune(tmp_path / "base", 3, tokens, journal=journal, resume=True, **options)
    limit = fitting(model.to(getattr(torch, dtype)), tokens, 2)
    streamed = prunecomp.prune(tmp_path / "base", 3, tokens, device_memory=limit, disk=tmp_path, **options)
    assert streamed.placement.group_size == 1
    assert streamed.placement.micro_batch == plain.placement.micro_batch  # another one rounds differently
    assert plain.repair is not None
    for other in (full, streamed, resumed):
        assert other.removed == plain.removed
        assert other.repair is not None
        assert other.repair.taken == plain.repair.taken
        assert other.repair.losses == plain.repair.losses
        assert other.repair.gaps == plain.repair.gaps
        assert other.perplexity == plain.perplexity
    resumed.save(tmp_path / "resumed")
    plain.save(tmp_path / "plain")
    assert not list(tmp_path.glob(".resumed*"))
    held = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("resumed", "plain")]
    assert held[0] == held[1]


def fitting(model: Any, tokens: torch.Tensor, boundaries: int) -> int:
    """Bytes for two layers at a time, some boundaries, and the sums of a joint fit over the whole micro-batch."""
    return needed(model, tokens, boundaries, demand_of(Decoder(model), shape_of(model), "joint"))


def halve(path: Path) -> None:
    """As if the run had been killed after two rounds."""
    journal = Journal._read(path)
    journal.rounds = journal.rounds[:2]
    journal._write()


def test_memory_that_holds_no_two_streams_is_refused_before_the_work(
    generator: torch.Generator, tmp_path: Path
) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "base")
    tokens = draw_tokens(model, generator, windows=40, seqlen=64)
    with pytest.raises(OptionError, match=r"--repair needs room for 4 boundaries .* left for 3: .*--repair none"):
        prunecomp.prune(tmp_path / "base", 2, tokens, repair="joint", device_memory=fitting(model, tokens, 3))
    with pytest.raises(OptionError, match=r"need [\d,]+ bytes, and no tier has them: |need [\d,]+; give more"):
        prunecomp.prune(tmp_path / "base", 2, tokens, repair="joint", device_memory=needed(model, tokens[:1], 2))


@pytest.mark.parametrize("ridge", [0, -1.0, float("nan"), "much", True, 1e9])
def test_a_ridge_that_is_none_is_refused(ridge: Any, generator: torch.Generator) -> None:
    model = build("llama")
    with pytest.raises(OptionError, match=r"--ridge .*: give a number from"):
        prunecomp.prune(model, 1, draw_tokens(model, generator), repair="refit", ridge=ridge)


def test_a_ridge_without_a_repair_is_refused(generator: torch.Generator) -> None:
    model = build("llama")
    with pytest.raises(OptionError, match=r"--ridge 1: --repair none fits nothing"):
        prunecomp.prune(model, 1, draw_tokens(model, generator), repair="none", ridge=1)
