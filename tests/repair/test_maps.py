"""The folded map: against float64 with the maps at run time and full re-runs, exported, and refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.errors import NumericalError, OptionError
from prunecomp.evaluation.perplexity import perplexity
from prunecomp.model.decoder import Decoder
from prunecomp.repair import demand_of, maps
from tests.engine.test_streaming import needed, shape_of
from tests.families.configs import FAMILIES
from tests.families.test_families import build as build_family
from tests.models import build, draw_tokens
from tests.oracles import refit
from tests.repair.test_refit import check_exports
from tests.tolerances import error

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
    logits = check_exports(result, model, tokens, logits_of(result, model, tokens), tmp_path)
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


@pytest.mark.parametrize("case", sorted(set(FAMILIES) - MAPPED))
def test_all_other_families_are_refused(case: str) -> None:
    with pytest.raises(OptionError, match=r"^--repair map: .*; or use --repair joint$"):
        maps.check_mappable(Decoder(build_family(case, tie_word_embeddings=False)))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("gpt2", r"GPT-2 reads its stream through LayerNorm, which takes out a mean"),
        ("gemma3", r"in Gemma 3 \(text\) a norm stands between a layer's last matrix and the stream"),
        ("olmo2", r"in OLMo 2/3 a norm stands between"),
        ("qwen3-moe", r"nothing is known of how mlp\.experts\.\w+ of layer \d reads the stream"),
        ("deepseek-v3", r"nothing is known of how self_attn\.\w+\.weight of layer 0 reads the stream"),
    ],
)
def test_what_no_map_goes_through_is_refused_by_name_before_any_work(case: str, message: str) -> None:
    model = build_family(case, tie_word_embeddings=False)
    with pytest.raises(OptionError, match=f"--repair map: {message}"):
        prunecomp.prune(model, 1, "no-such-file.txt", repair="map")


def test_a_tied_head_is_refused_with_what_its_own_would_take() -> None:
    model = build("llama-tied-biased")
    own = model.lm_head.weight.numel()
    with pytest.raises(OptionError, match=rf"tied to the embedding and would need {own:,} parameters .*--repair joint"):
        prunecomp.prune(model, 1, "no-such-file.txt", repair="map")


def test_a_streamed_model_is_refused(generator: torch.Generator, tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "base")
    tokens = draw_tokens(model, generator, windows=4)
    demand = demand_of(Decoder(model), shape_of(model), "map")
    with pytest.raises(OptionError, match=r"--repair map puts new weights .*--device-memory, or use --repair joint"):
        prunecomp.prune(
            tmp_path / "base", 2, tokens, repair="map", device_memory=needed(model, tokens, 4, demand), disk=tmp_path
        )


def test_a_map_that_turns_the_stream_around_is_refused(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator, windows=8)
    result = mapped(model, tokens, [4, 2])
    assert result.repair is not None
    low, high = (gap.condition for gap in result.repair.gaps)
    assert low is not None
    assert high is not None
    monkeypatch.setattr(maps, "LARGEST_CONDITION", (low + high) / 2)
    with pytest.raises(NumericalError, match=rf"above layer 4 the map has a condition number of {high:.3g}, .*--ridge"):
        mapped(model, tokens, [4, 2])
    mapped(model, tokens, [4, 2], ridge=1000.0)  # all but no map


def test_padding_is_no_part_of_the_map(generator: torch.Generator) -> None:
    model = build("llama").double()
    lengths = [24, 19, 17, 11, 8, 5]
    tokens = draw_tokens(model, generator, windows=6, seqlen=24)
    rows = [row[:n] for row, n in zip(tokens, lengths, strict=True)]
    padded = tokens.masked_fill(torch.arange(24) >= torch.tensor(lengths).unsqueeze(1), -1)
    result = mapped(model, padded, [2, 4], ridge=1.0)
    expected, _ = refit.repair(model, rows, [2, 4], 1.0, joint=True, map_ridge=maps.MAP_RIDGE)
    wanted = expected(input_ids=tokens, use_cache=False).logits
    assert error(logits_of(result, model, tokens), wanted) < 64 * torch.finfo(torch.float32).eps
