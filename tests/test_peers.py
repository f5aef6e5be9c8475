"""Other methods' repairs, which ours are measured against: each does what its paper says it does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.baselines import maps
from benchmarks.real import peers
from tests.models import build, draw_tokens

SIZES = (1, 2, 4, 12, 20, 36, 64, 576, 640, 896, 960, 1536, 2048)
"""The last ones are widths of models that one meets: SmolLM2, Gemma 3, Qwen2, Llama."""


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    return build("llama")


@pytest.fixture(scope="module")
def tokens(model: Any) -> torch.Tensor:
    return draw_tokens(model, torch.Generator().manual_seed(1), windows=6)


@pytest.mark.parametrize("size", SIZES)
def test_a_hadamard_matrix_is_orthonormal_and_of_one_magnitude(size: int) -> None:
    matrix = maps.hadamard(size).double()
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, size**-0.5))


def test_a_size_that_is_not_reached_is_refused() -> None:
    with pytest.raises(ValueError, match="92"):
        maps.hadamard(92)


def test_streams_are_those_that_transformers_gives(model: Any, tokens: torch.Tensor) -> None:
    streams = maps.Streams(model, tokens)
    with torch.no_grad():
        known = model(tokens, output_hidden_states=True).hidden_states
    for ours, theirs in zip(streams.inputs[:-1], known[:-1], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(model.model.norm(streams.inputs[-1]), known[-1], rtol=1e-4, atol=1e-5)


def test_a_map_that_there_is_is_found(model: Any, tokens: torch.Tensor) -> None:
    """Streams behind which the layers do a linear map: least squares finds it, and a scale is found by LinearPatch."""
    streams = maps.Streams(model, tokens)
    width = streams.inputs[0].shape[-1]
    matrix = torch.eye(width) + 0.1 * torch.randn(width, width, generator=torch.Generator().manual_seed(2))
    linear = copy.copy(streams)
    linear.inputs = [*streams.inputs[:3], streams.inputs[2] @ matrix, *streams.inputs[4:]]
    assert torch.allclose(maps.ghosted(linear, 2, 3), matrix, atol=1e-2)
    linear.inputs[3] = 1.7 * streams.inputs[2]
    assert torch.allclose(maps.linear_patch(linear, 2, 3), 1.7 * torch.eye(width), atol=1e-5)


def test_replace_me_leaves_less_than_the_layers_did(model: Any, tokens: torch.Tensor) -> None:
    """With its map in the down projection the stream is nearer to the dense one than with the layers merely gone, and
    by as much as the fit says."""
    streams = maps.Streams(model, tokens)
    block, target = [2, 3], streams.inputs[4]
    plain = maps.Streams(peers.without(model, block), tokens).inputs[2]
    fitted = maps.Streams(peers.replaced(model, streams, block, cosine=False), tokens).inputs[2]
    matrix = maps.replace_me(streams, 2, 4, cosine=False)
    expected = streams.inputs[2] - streams.mlps[1] + streams.mlps[1] @ matrix
    assert torch.allclose(fitted, expected, rtol=1e-3, atol=1e-4)
    assert (fitted - target).norm() < 0.95 * (plain - target).norm()
    cosine = maps.Streams(peers.replaced(model, streams, block, cosine=True), tokens).inputs[2]
    assert maps.similarity(cosine, target) > maps.similarity(plain, target)


@pytest.mark.parametrize("removed", [[1], [2, 3], [1, 3], [4, 5]])
def test_a_map_stands_where_the_layers_were(model: Any, tokens: torch.Tensor, removed: list[int]) -> None:
    """Run with hooks, and by hand: the stream of the layers below, mapped, through the layers above."""
    streams = maps.Streams(model, tokens)
    pruned = peers.mapped(model, streams, removed, maps.ghosted)
    first = min(removed)
    stops = maps.gaps(removed)[0][1] if len(maps.gaps(removed)) == 1 else first + 1
    with torch.no_grad():
        seen = maps.Streams(peers.without(model, removed), tokens).inputs[first] @ maps.ghosted(streams, first, stops)
    found = maps.Streams(pruned, tokens).inputs[first]
    assert torch.allclose(found, seen, rtol=1e-3, atol=1e-4)


def test_choices_are_what_their_papers_say(model: Any, tokens: torch.Tensor) -> None:
    streams = maps.Streams(model, tokens)
    scores = [1 - maps.similarity(x, y) for x, y in zip(streams.inputs, streams.inputs[1:], strict=False)]
    assert maps.short_gpt(streams, 2) == sorted(np.argsort(scores)[:2].tolist())
    start = maps.streamline(streams, 2)[0]
    assert maps.streamline(streams, 2) == [start, start + 1]
    assert 1 <= start <= 3
    assert maps.replace_me_block(streams, 2)[0] >= 1
    assert maps.gaps([5, 2, 3]) == [(2, 4), (5, 6)]


def test_tables_give_the_median_and_the_range_of_the_draws() -> None:
    draws = {
        str(seed): {"3": {"ours": {"removed": [1, 2, 3 + seed], "perplexity": {"code": 10.0 + seed}}}}
        for seed in range(3)
    }
    record = {
        "model": "m", "num_layers": 30, "samples": 2, "seqlen": 4, "calibration": "mixture", "windows": 8,
        "evaluated": 16, "repair": "joint", "dense": {"code": 5.0}, "draws": draws,
    }  # fmt: skip
    assert "| ours | 11.0 (10.0 to 12.0) | differ |" in peers.tables(record)
