"""A model larger than the memory it is given: the same bits, and no more layer-forwards than the budget costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.engine.placement import Demand, Memory, ModelShape, Placement, model_shape, place
from prunecomp.engine.states import Tier
from prunecomp.errors import NumericalError, OptionError, OutputError
from prunecomp.model.families import families
from tests.models import build, draw_tokens

CPU = torch.device("cpu")


def shape_of(model: Any) -> ModelShape:
    return model_shape(model, families.find(model.config.model_type), model.dtype)


def needed(
    model: Any, tokens: torch.Tensor, boundaries: int, demand: Demand | None = None, device: torch.device = CPU
) -> int:
    """Bytes for two layers at a time and some boundaries beside the one that is carried, and for what a run demands
    beside a forward pass."""
    shape = shape_of(model)
    count, seqlen = tokens.shape
    placed = place(shape, count, seqlen, Memory(10**12), device, demand=demand)
    boundary = count * seqlen * shape.hidden_size * shape.itemsize
    slots = placed.peak_nbytes[Tier.device] - placed.kept_boundaries * boundary
    slots -= (shape.num_layers - 2) * shape.layer_nbytes
    return slots + (1 + boundaries) * boundary


@pytest.mark.parametrize("on_disk", [False, True], ids=["in-memory", "states-on-disk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_streamed_run_equals_a_resident_one_bit_for_bit(
    model: Any, generator: torch.Generator, tmp_path: Path, saved: Callable[..., Path], dtype: str, on_disk: bool
) -> None:
    tokens = draw_tokens(model, generator, windows=7, seqlen=33)
    base = saved(model, max_shard_size="60KB")
    plain = prunecomp.prune(base, 4, tokens, dtype=dtype, eval=tokens, preset="paper")
    limit = needed(model.to(getattr(torch, dtype)), tokens, -1 if on_disk else 2)
    limited = prunecomp.prune(
        base,
        4,
        tokens,
        dtype=dtype,
        eval=tokens,
        device_memory=limit,
        disk=tmp_path if on_disk else None,
        preset="paper",
    )
    assert plain.placement.group_size is None
    assert limited.placement.group_size == 1
    assert limited.placement.carry is (Tier.disk if on_disk else Tier.device)
    assert limited.removed == plain.removed
    assert limited.scales == plain.scales
    assert [r.scores for r in limited.rounds] == [r.scores for r in plain.rounds]
    assert limited.perplexity == plain.perplexity
    ours, theirs = plain.save(tmp_path / "plain"), limited.save(tmp_path / "limited")
    for file in ("model.safetensors", "config.json"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"base", "plain", "limited"}  # no state file is left


@pytest.mark.parametrize("boundaries", range(6))
def test_every_budget_gives_the_same_bits_and_a_full_one_recomputes_nothing(
    generator: torch.Generator, saved: Callable[..., Path], boundaries: int
) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator, windows=5)
    base = saved(model)
    plain = prunecomp.prune(base, 4, tokens, cache=False, preset="paper")
    limited = prunecomp.prune(base, 4, tokens, device_memory=needed(model, tokens, boundaries), preset="paper")
    assert limited.placement.kept_boundaries == min(boundaries, 5)
    assert (limited.removed, limited.scales) == (plain.removed, plain.scales)
    alive, least = list(range(6)), 6
    for layer in limited.removed[:-1]:
        p = alive.index(layer)
        alive.remove(layer)
        least += len(alive) - p
    assert least <= limited.layer_forwards <= plain.layer_forwards
    if boundaries >= 5:
        assert limited.layer_forwards == least


def test_memory_that_does_not_hold_two_layers_is_refused(
    generator: torch.Generator, saved: Callable[..., Path]
) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    base = saved(model)
    with pytest.raises(
        OptionError, match=r"two layers, the embedding and one window of 24 tokens need [\d,]+; give more"
    ):
        prunecomp.prune(base, 1, tokens, device_memory=100_000, preset="paper")
    with pytest.raises(OptionError, match="give --disk DIR"):
        prunecomp.prune(base, 1, tokens, device_memory=needed(model, tokens[:1], -1), preset="paper")


def test_a_smaller_micro_batch_makes_room_for_what_is_carried(
    generator: torch.Generator, saved: Callable[..., Path]
) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    base = saved(model)
    plain = prunecomp.prune(base, 1, tokens, preset="paper")
    limited = prunecomp.prune(base, 1, tokens, device_memory=needed(model, tokens, -1), preset="paper")
    assert limited.placement.micro_batch < plain.placement.micro_batch
    assert limited.placement.carry is Tier.device
    assert limited.removed == plain.removed
    assert limited.scales == pytest.approx(plain.scales, rel=1e-5)


def test_a_disk_that_is_not_there_or_too_small_is_refused(
    generator: torch.Generator, saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    base = saved(model)
    limit = needed(model, tokens[:1], -1)
    with pytest.raises(OptionError, match="no such folder"):
        prunecomp.prune(base, 1, tokens, device_memory=limit, disk=tmp_path / "missing", preset="paper")
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr("prunecomp.engine.states.shutil.disk_usage", lambda folder: usage)
    with pytest.raises((OutputError, OptionError), match=r"100 bytes free|no tier has them"):
        prunecomp.prune(base, 1, tokens, device_memory=limit, disk=tmp_path, preset="paper")


def test_a_streamed_weight_that_is_not_finite_is_named(generator: torch.Generator, saved: Callable[..., Path]) -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[2, 1] = torch.nan
    tokens = draw_tokens(model, generator)
    with pytest.raises(NumericalError, match=r"model\.safetensors: model\.layers\.3\.mlp\.up_proj\.weight"):
        prunecomp.prune(saved(model), 1, tokens, device_memory=needed(model, tokens, 1), preset="paper")


def test_groups_cut_the_layers_in_order() -> None:
    one = Placement(1, 2, {}, Tier.device, {})
    assert one.groups((0, 3, 4, 7, 9)) == [(0, 3), (4, 7), (9,)]
    assert Placement(1, None, {}, Tier.device, {}).groups((0, 3)) == [(0, 3)]
