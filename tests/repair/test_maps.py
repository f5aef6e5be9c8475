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
