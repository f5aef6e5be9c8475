"""Compensations that are fitted or chosen: against float64 with full re-runs, and under every way to run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import prunecomp
from prunecomp.compensation.choice import CHOICES, SEARCH_RUNS, minimise
from prunecomp.compensation.linear import RIDGE
from prunecomp.errors import OptionError
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.pruning.journal import Journal, journal_path
from tests.engine.test_streaming import needed
from tests.models import build, draw_tokens
from tests.oracles import iterative, linear
from tests.tolerances import error, relative


@torch.no_grad()
def loss(model: Any, windows: torch.Tensor) -> float:
    """Mean over windows, in the model's dtype."""
    return sum(float(model(input_ids=t[None], labels=t[None], use_cache=False).loss) for t in windows) / len(windows)


def test_the_linear_repair_agrees_with_float64_on_full_reruns(model: Any, generator: torch.Generator) -> None:
    model.double()
    tokens = draw_tokens(model, generator, windows=6)
    result = prunecomp.prune(model, 3, tokens, compensation="linear")
    removed, expected = linear.prune(model, tokens, 3, RIDGE)
    assert result.removed == removed
    decoder = Decoder(model)
    with decoder.evaluating():
        logits = decoder.logits(decoder.run(result.stack, tokens))
        # Overlays are kept in float32: one rounding of each weight, of which a layer's output is a sum.
        assert error(logits, expected(input_ids=tokens, use_cache=False).logits) < 16 * torch.finfo(torch.float32).eps


def test_padding_is_no_part_of_the_linear_fit(generator: torch.Generator) -> None:
    model = build("llama").double()
    lengths = [24, 19, 17, 11, 8, 5]
    tokens = draw_tokens(model, generator, windows=6, seqlen=24)
    rows = [row[:n] for row, n in zip(tokens, lengths, strict=True)]
    padded = tokens.masked_fill(torch.arange(24) >= torch.tensor(lengths).unsqueeze(1), -1)
    result = prunecomp.prune(model, 3, padded, compensation="linear")
    removed, expected = linear.prune(model, rows, 3, RIDGE)
    assert result.removed == removed
    decoder = Decoder(model)
    with decoder.evaluating():
        logits = decoder.logits(decoder.run(result.stack, tokens))
        assert error(logits, expected(input_ids=tokens, use_cache=False).logits) < 16 * torch.finfo(torch.float32).eps


def test_the_search_begins_with_what_nothing_would_do(generator: torch.Generator) -> None:
    model = build("llama")
    pruner = prunecomp.pruner_for(model, draw_tokens(model, generator, windows=6), compensation="search")
    pruner.score()
    losses = pruner.remove(3).losses
    assert "1.000000" in losses
    assert len(losses) <= 8


def test_the_linear_repair_explains_the_stream_that_is_gone(generator: torch.Generator) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator, windows=12)
    gaps = {}
    for name in ("none", "linear"):
        result = prunecomp.prune(model, 1, tokens, metric="given", given=[3], compensation=name)
        decoder = Decoder(model)
        with decoder.evaluating():
            stack = result.stack.below(3)
            was = decoder.run(LayerStack.dense(6).below(4), tokens)
            rows = (decoder.run(stack, tokens) - was).square().sum(dim=-1) / was.square().sum(dim=-1)
            gaps[name] = float(rows.mean())
    assert gaps["linear"] < gaps["none"]


@pytest.mark.parametrize(
    ("compensation", "given"),
    [("linear", [3, 2, 4]), ("auto", [4, 3, 2]), ("search", [5, 0, 1]), ("linear", [5, 0, 1])],
)
def test_exports_equal_the_seam_model(
    model: Any, generator: torch.Generator, tmp_path: Path, compensation: str, given: list[int]
) -> None:
    tokens = draw_tokens(model, generator, windows=8)
    layers = 1 if compensation == "search" else 3  # the best scales of random models multiply to what folds badly
    result = prunecomp.prune(model, layers, tokens, metric="given", given=given, compensation=compensation)
    # NORM_EPSILON is for scales up to 2, and for what norms read: layers of random gains may amplify it twofold.
    loosened = 2 * max(1.0, *(max(scale, 1 / scale) for scale in result.scales)) ** 2
    assert (len(result.stack.overlays) > 0) or compensation != "linear"
    assert set(result.stack.overlays) <= set(result.stack.alive)
    decoder = Decoder(model)
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
        for form in ("up", "down"):
            result.options.__dict__["fold"] = form
            loaded = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / form))
            assert error(loaded(input_ids=tokens).logits, expected) < loosened * relative(torch.float32)
    changed = copy.deepcopy(model)
    result.apply(changed)
    with torch.no_grad():
        assert error(changed(input_ids=tokens).logits, expected) < loosened * relative(torch.float32)


def test_weights_stay_as_they_were_under_overlays(model: Any, generator: torch.Generator) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prunecomp.prune(model, 3, draw_tokens(model, generator), compensation="linear", eval=draw_tokens(model, generator))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("compensation", ["linear", "auto", "search"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_uncached_streamed_and_resumed_runs_agree(
    generator: torch.Generator, tmp_path: Path, dtype: str, compensation: str
) -> None:
    model = build("llama", mlp_bias=True)
    model.save_pretrained(tmp_path / "base")
    tokens = draw_tokens(model, generator, windows=9, seqlen=33)
    options: dict[str, Any] = {"compensation": compensation, "dtype": dtype, "eval": tokens}
    plain = prunecomp.prune(tmp_path / "base", 4, tokens, **options)
    full = prunecomp.prune(tmp_path / "base", 4, tokens, cache=False, **options)
    limit = needed(model.to(getattr(torch, dtype)), tokens, 2)
    streamed = prunecomp.prune(tmp_path / "base", 4, tokens, device_memory=limit, disk=tmp_path, **options)
    journal = journal_path(tmp_path / "resumed")
    prunecomp.prune(tmp_path / "base", 4, tokens, journal=journal, **options)  # never saved: the journal stays
    halve(journal)
    resumed = prunecomp.prune(tmp_path / "base", 4, tokens, journal=journal, resume=True, **options)
    assert streamed.placement.group_size == 1
    if compensation == "linear":
        assert list(tmp_path.glob(".resumed.journal.*.safetensors"))
    for other in (full, streamed, resumed):
        assert other.removed == plain.removed
        assert other.scales == plain.scales
        assert [r.chosen for r in other.rounds] == [r.chosen for r in plain.rounds]
        assert other.perplexity == plain.perplexity
    resumed.save(tmp_path / "resumed")
    plain.save(tmp_path / "plain")
    assert not list(tmp_path.glob(".resumed*"))
    held = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("resumed", "plain")]
    assert held[0] == held[1]


def halve(path: Path) -> None:
    """As if the run had been killed after two rounds."""
    journal = Journal._read(path)
    journal.rounds = journal.rounds[:2]
    journal._digests = {number: digest for number, digest in journal._digests.items() if number < 2}
    journal._write()


def test_damaged_weights_beside_a_journal_are_never_believed(generator: torch.Generator, tmp_path: Path) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    journal = journal_path(tmp_path / "out")
    prunecomp.prune(model, 2, tokens, metric="given", given=[3, 2], compensation="linear", journal=journal)
    weights = next(tmp_path.glob("*.0.safetensors"), None) or next(tmp_path.glob(".*.0.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(prunecomp.errors.JournalError, match="has changed since it was written"):
        prunecomp.prune(
            model, 2, tokens, metric="given", given=[3, 2], compensation="linear", journal=journal, resume=True
        )


def test_search_finds_the_scale_of_least_loss(model: Any, generator: torch.Generator) -> None:
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(model, 1, tokens, metric="given", given=[2], compensation="search")

    def exact(scale: float) -> float:
        work = copy.deepcopy(model).double()
        iterative.remove(work, list(range(6)), 2, scale)
        return loss(work, tokens)

    tried = {float(scale): value for scale, value in result.rounds[0].losses.items()}
    assert len(tried) <= SEARCH_RUNS
    for scale, value in tried.items():
        assert value == pytest.approx(exact(scale), rel=1e-4)
    found = exact(result.scales[0])
    assert found <= exact(1.0) + 1e-5
    paper = prunecomp.prune(model, 1, tokens, metric="given", given=[2]).scales[0]
    assert found <= exact(paper) + 1e-5


def test_minimising_a_parabola_takes_its_vertex() -> None:
    for low in (-0.7, 0.03, 0.4, 2.5):
        tried = minimise(lambda x, low=low: (x - low) ** 2, 0.0, 0.1, 12, 3.0)
        assert min(tried, key=lambda x: tried[x]) == pytest.approx(low, abs=1e-3)
    tried = minimise(lambda x: -x, 0.0, 0.1, 12, 1.5)
    assert max(tried) == 1.5


def test_auto_takes_what_loses_least_on_windows_that_nothing_was_fitted_on(
    model: Any, generator: torch.Generator
) -> None:
    tokens = draw_tokens(model, generator, windows=16)
    result = prunecomp.prune(model, 2, tokens, metric="given", given=[3, 4], compensation="auto", seed=5)
    first = result.rounds[0]
    assert set(first.losses) == set(CHOICES)
    assert first.losses[first.chosen] == min(first.losses.values())
    shuffled = result.calibration.shuffled(5).tokens
    fitted, held_out = shuffled[:14], shuffled[14:]
    for name in CHOICES:
        alone = prunecomp.prune(model, 1, fitted, metric="given", given=[3], compensation=name)
        pruned = copy.deepcopy(model)
        alone.apply(pruned)
        assert first.losses[name] == pytest.approx(loss(pruned, held_out), rel=1e-4)


def test_auto_needs_windows_to_hold_out(generator: torch.Generator) -> None:
    model = build("llama")
    with pytest.raises(OptionError, match="at least two --samples"):
        prunecomp.prune(model, 1, draw_tokens(model, generator, windows=1), compensation="auto")
