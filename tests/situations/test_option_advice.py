"""What a message advises is done as it says, and works; nothing is advised that was done already or cannot be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import prunecomp
from prunecomp.compare.arms import named_texts
from prunecomp.engine.placement import Memory as Limits
from prunecomp.engine.placement import ModelShape, place
from prunecomp.errors import NumericalError, OptionError
from tests.models import build
from tests.situations.small import Small, invoke, said, small

__all__ = ["small"]


@pytest.fixture(scope="module")
def tokens(small: Small) -> np.ndarray:
    return np.load(small.windows)


@pytest.mark.parametrize(
    ("refused", "advice", "advised"),
    [
        ({"given": [3]}, "use --metric given", {"given": [3], "metric": "given", "layers": 1}),
        ({"given": [3]}, "or leave it out", {}),
        ({"metric": "given", "given": [3]}, "give as many", {"metric": "given", "given": [3, 1]}),
        ({"metric": "given", "given": [3, 2], "keep": [3]}, "leave it out", {"metric": "given", "given": [3, 2]}),
        ({"span": 3}, "give at most as many", {"span": 2}),
        ({"span": 2, "metric": "ppl"}, "choose bi, span or angular", {"span": 2, "metric": "angular"}),
        ({"lookahead": True}, "choose ppl", {"lookahead": True, "metric": "ppl"}),
        ({"confidence": 2}, "as in 0.999", {"confidence": 0.999}),
        ({"confidence": 0.9, "metric": "last"}, "choose bi, angular, span", {"confidence": 0.9, "metric": "span"}),
        ({"confidence": 0.9, "parity": "official"}, "leave out one", {"parity": "official"}),
        ({"parity": "official", "metric": "ppl", "dtype": "float32"}, "leave out one", {"metric": "ppl"}),
        ({"fold": "down", "compensation": "none"}, "leave it out", {"compensation": "none"}),
        ({"samples": 3}, "leave out --samples", {}),
        ({"seqlen": 3}, "leave out --seqlen", {}),
        ({"device": "cuda:7"}, "use --device cpu", {"device": "cpu"}),
        ({"host_memory": 10**9}, "give --device-memory instead", {"device_memory": 10**9}),
        ({"layers": 6}, "at most 5 can be removed", {"layers": 5}),
        ({"candidates": [3]}, "at most 1 can be removed", {"candidates": [3], "layers": 1}),
        ({"one_shot": True, "span": 2, "layers": 3}, "must be a multiple", {"one_shot": True, "span": 2, "layers": 4}),
        ({"one_shot": True, "span": 2, "candidates": [0, 2]}, "or leave out --one", {"span": 2, "candidates": [0, 2]}),
        ({"one_shot": True, "span": 2, "candidates": [0, 2, 4]}, "let other layers go", {"one_shot": True, "span": 2}),
        ({"resume": True}, "or leave it out", {}),
    ],
)  # fmt: skip
def test_of_prune(
    small: Small, tokens: np.ndarray, refused: dict[str, Any], advice: str, advised: dict[str, Any]
) -> None:
    if refused.get("device", "").startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(OptionError, match=re.escape(advice)):
        prunecomp.prune(small.folder, **{"layers": 2, "calibration": tokens, **refused}, preset="paper")
    assert prunecomp.prune(small.folder, **{"layers": 2, "calibration": tokens, **advised}, preset="paper").removed


def test_where_a_stream_is_zero_no_compensation_is_needed(tokens: np.ndarray) -> None:
    model = build("llama", vocab_size=48, hidden_size=16, intermediate_size=24)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    with pytest.raises(NumericalError, match="or use --compensation none"):
        prunecomp.prune(model, 1, tokens, preset="paper")
    assert prunecomp.prune(model, 1, tokens, compensation="none", preset="paper").removed


SHAPE = ModelShape(
    num_layers=8, hidden_size=64, layer_nbytes=4000, outer_nbytes=1000, flops_per_token=1, attention_width=64,
    activation_width=10, itemsize=4,
)  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("disk", [None, Path("/tmp")])
def test_room_is_asked_for_where_there_can_be_some(device: str, disk: Path | None) -> None:
    limits = Limits(40_000, 0, 0, disk)
    with pytest.raises(OptionError) as caught:
        place(SHAPE, 16, 16, limits, torch.device(device))
    said = str(caught.value)
    assert ("give --disk DIR" in said) == (disk is None)
    assert ("--host-memory" in said) == (device == "cuda")
    on_disk = place(SHAPE, 16, 16, Limits(40_000, 0, 10**9, Path("/tmp")), torch.device(device))
    assert on_disk.group_size == 1
    assert place(SHAPE, 16, 16, Limits(10**9), torch.device(device)).group_size is None
    assert place(SHAPE, 1, 16, limits, torch.device(device)).kept_boundaries >= 0  # fewer windows


def test_blocks_find_room_on_a_disk(small: Small, tokens: np.ndarray, tmp_path: Path) -> None:
    many = np.tile(tokens, (16, 1))
    options: dict[str, Any] = {"metric": "taylor", "candidates": [2, 3, 4], "dtype": "float32"}
    for limit in range(40_000, 400_000, 20_000):
        message = ""
        try:
            prunecomp.prune(small.folder, 1, many, device_memory=limit, **options, preset="paper")
        except OptionError as error:
            message = str(error)
        if "--disk" in message:
            break
    assert "give --disk DIR, more --device-memory, or fewer windows" in message
    assert prunecomp.prune(small.folder, 1, many, device_memory=limit, disk=tmp_path, **options, preset="paper").removed


def test_a_block_of_layers_is_removed_as_it_is_said(small: Small, tokens: np.ndarray) -> None:
    for metric in ("bi", "ppl"):
        pruner = prunecomp.pruner_for(small.folder, tokens, metric=metric)
        with pytest.raises(OptionError, match="remove them one by one") as caught:
            pruner.remove(2, 3)
        assert ("make the pruner with span=2" in str(caught.value)) == (metric == "bi")
        assert pruner.remove(2).scale * pruner.remove(3).scale > 0
    assert prunecomp.pruner_for(small.folder, tokens, span=2).remove(2, 3).scale > 0


def test_of_compare(small: Small, tmp_path: Path) -> None:
    text = str(small.windows)
    with pytest.raises(OptionError, match=r"name this one, as in other=") as caught:
        named_texts([text, text])
    advised = re.search("as in (other=.*)", str(caught.value))
    assert advised is not None
    assert list(named_texts([text, advised[1]])) == ["windows", "other"]
    start = ["compare", small.folder, "--calibration", text, "--eval", text, "--out", tmp_path / "out"]
    assert "as in 2,4,6" in said(invoke(*start))
    backwards = said(invoke(*start, "--layers", "2-1"))
    found = re.search(r"write (\S+)$", backwards)
    assert found is not None
    assert invoke(*start, "--layers", found[1]).exit_code == 0
    (tmp_path / "out" / "comparison.json").write_text("[" * 10**5)
    damaged = invoke(*start, "--layers", "1-2", "--resume")
    assert damaged.exit_code == 9
    assert "give another --out" in said(damaged)
    assert invoke(*start[:-1], tmp_path / "other", "--layers", "1-2").exit_code == 0
