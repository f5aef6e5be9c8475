"""Where boundaries find their place, what a full store refuses, and what is given back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prunecomp.data.windows import Batch, Windows
from prunecomp.engine.rates import measure_rates
from prunecomp.engine.states import CARRY, StateShape, StateStore, Tier, set_apart
from prunecomp.model.decoder import Decoder
from prunecomp.pruning.pruner import Pruner
from tests.models import build, draw_tokens

CPU = torch.device("cpu")
SHAPE = StateShape(12, 4, torch.float32)


def batch() -> Batch:
    return Windows(torch.zeros(2, 6, dtype=torch.int64), "").batches(2)[0]


def test_boundaries_take_the_fastest_place_that_is_free_and_no_more(tmp_path: Path) -> None:
    store = StateStore(SHAPE, CPU, {Tier.device: 1, Tier.host: 1, Tier.disk: 0}, disk=tmp_path)
    store.retain([5, 3, 1])
    assert [store.wants(layer) for layer in (5, 3, 1)] == [True, True, False]
    assert (store.budget, store.room) == (2, 2)
    assert [store._wanted[layer] for layer in (5, 3)] == [Tier.device, Tier.host]


@pytest.mark.parametrize("tier", [Tier.device, Tier.disk])
def test_what_is_put_comes_back_and_only_memory_is_kept_for_what_comes_next(tmp_path: Path, tier: Tier) -> None:
    store = StateStore(SHAPE, CPU, {tier: 1}, disk=tmp_path)
    store.retain([2])
    stream = torch.randn(2, 6, 4)
    store.put(2, batch(), stream)
    assert torch.equal(store.get(2, batch()), stream)
    store.drop(2)
    assert len(store._spare) == (tier is Tier.device)


def test_what_is_left_once_boundaries_have_their_places() -> None:
    assert set_apart({}, 0)[1] == dict.fromkeys(Tier, 0)
    _, left = set_apart({Tier.device: 3, Tier.disk: 4}, 5)
    assert left == {Tier.device: 0, Tier.host: 0, Tier.disk: 2}


def test_nothing_is_carried_once_a_pass_is_over(generator: torch.Generator) -> None:
    model = build("llama")
    windows = Windows(draw_tokens(model, generator), "")
    placement = replace(Pruner(Decoder(model), windows).placement, group_size=1, capacity={})
    pruner = Pruner(Decoder(model), windows, placement=placement)
    pruner.score()
    assert all(CARRY not in shard.states._stored for shard in pruner._run.shards)


def test_rates_are_those_of_a_machine(tmp_path: Path) -> None:
    """Between the slowest and the fastest that there is: bytes and operations a second, and no other unit."""
    (tmp_path / "model.safetensors").write_bytes(bytes(2**22))
    rates = measure_rates(CPU, torch.float32, 256, tmp_path, tmp_path)
    assert 1e7 < rates.flops < 1e15
    assert rates.link is None
    assert rates.checkpoint is not None
    assert rates.disk is not None
    assert 1e6 < rates.checkpoint < 1e12
    assert 1e5 < rates.disk < 1e12
