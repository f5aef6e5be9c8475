"""The folded map: against float64 with the maps at run time and full re-runs, exported, and refused by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import prunecomp
from prunecomp.errors import NumericalError, OptionError
from prunecomp.evaluation.perplexity import perplexity
from prunecomp.model.decoder import Decoder
from prunecomp.repair import maps
from tests.families.configs import FAMILIES
from tests.families.test_families import build as build_family
from tests.models import build, draw_tokens
from tests.oracles import refit
from tests.tolerances import error, relative

GAPS = ([3], [2, 4], [1, 2, 5], [0, 3])
"""A single layer; two gaps around one survivor; two neighbours, and the top; the bottom, where nothing lies below."""
UNTIED = ("llama", "mistral", "qwen2", "qwen3")


def mapped(model: Any, tokens: Any, removed: list[int], **options: Any) -> prunecomp.PruneResult:
    return prunecomp.prune(model, len(removed), tokens, metric="given", given=removed, repair="map", **options)


def logits_of(result: prunecomp.PruneResult, model: Any, tokens: torch.Tensor) -> torch.Tensor:
    decoder = Decoder(model)
    with decoder.evaluating():
        return decoder.topped(result.stack).logits(decoder.run(result.stack, tokens))


@pytest.mark.parametrize("removed", GAPS, ids=str)
@pytest.mark.parametrize("case", ["llama", "qwen3"])
def test_the_folded_map_is_the_map_at_run_time_with_one_number_for_the_norms(
    case: str, generator: torch.Generator, removed: list[int]
) -> None:
    model = build(case).double()
    tokens = draw_tokens(model, generator, windows=8)
    result = mapped(model, tokens, removed, ridge=1.0)
    expected, scales = refit.repair(model, list(tokens), removed, 1.0, joint=True, map_ridge=maps.MAP_RIDGE)
    assert result.repair is not None
    assert [gap.scale for gap in result.repair.gaps] == pytest.approx(scales, rel=1e-5)
    wanted = expected(input_ids=tokens, use_cache=False).logits
    # Every weight is kept in float32: one rounding of each, of which all layers' outputs are sums.
    assert error(logits_of(result, model, tokens), wanted) < 64 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("case", UNTIED)
def test_exports_equal_the_mapped_model(case: str, generator: torch.Generator, tmp_path: Path) -> None:
    model = build(case)
    tokens = draw_tokens(model, generator, windows=8)
    result = mapped(model, tokens, [4, 2], eval=tokens)
    expected = logits_of(result, model, tokens)
    for form in ("up", "down"):
        result.options.__dict__["fold"] = form
        loaded = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / form))
        assert error(loaded(input_ids=tokens).logits, expected) < 8 * relative(torch.float32)
    changed = copy.deepcopy(model)
    result.apply(changed)
    with torch.no_grad():
        logits = changed(input_ids=tokens).logits
    assert error(logits, expected) < 8 * relative(torch.float32)
    decoder, windows = Decoder(model), result.evaluation
    assert windows is not None
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert result.perplexity is not None
    assert result.perplexity["pruned"] == pytest.approx(float(loss.exp()), rel=1e-4)
    assert perplexity(decoder, result.stack, windows, result.placement) == pytest.approx(float(loss.exp()), rel=1e-4)


MAPPED = {"gemma", "granite", "llama3", "ministral", "ministral3", "mistral", "phi3", "qwen2", "qwen3", "smollm3"}


@pytest.mark.parametrize("case", sorted(MAPPED))
def test_families_with_readers_and_multipliers_of_their_own(case: str, generator: torch.Generator) -> None:
    model = build_family(case, tie_word_embeddings=False).double()
    tokens = draw_tokens(model, generator, windows=8, seqlen=14)
    result = mapped(model, tokens, [2, 4], ridge=3.0)
    expected, _ = refit.repair(model, list(tokens), [2, 4], 3.0, joint=True, map_ridge=3.0 * maps.MAP_RIDGE)
    wanted = expected(input_ids=tokens, use_cache=False).logits
    assert error(logits_of(result, model, tokens), wanted) < 64 * torch.finfo(torch.float32).eps
