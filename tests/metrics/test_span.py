"""Blocks of layers against float64 on whole re-runs: their scores, the choice, and what takes their place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import prunecomp
from prunecomp.data.windows import Windows
from prunecomp.engine.gram import gram_demand
from prunecomp.engine.placement import Memory, Placement, model_shape, place
from prunecomp.engine.run import Run, take_turns
from prunecomp.engine.states import Tier
from prunecomp.errors import OptionError
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families
from prunecomp.pruning.pruner import Pruner
from prunecomp.pruning.rounds import run_rounds
from prunecomp.report import drawing
from prunecomp.report.similarity import similarity_map
from tests.engine.test_ragged import PackingDecoder, ragged
from tests.models import build, draw_tokens
from tests.oracles import iterative, span
from tests.tolerances import SCALE, error, relative

CPU = torch.device("cpu")


def spread(model: Any, generator: torch.Generator) -> Any:
    """Make layers matter in no order: random models are turned less and less towards the top."""
    with torch.no_grad():
        for layer in model.model.layers:
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight.mul_(float(torch.rand((), generator=generator)) + 0.2)
    return model


def room(boundaries: int, windows: int = 2) -> Placement:
    return Placement(windows, None, {Tier.device: boundaries}, Tier.device, {})


def records(rounds: list[Any]) -> list[Any]:
    return [(r.block, r.scale, r.scores) for r in rounds]


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(("metric", "compensation"), [("bi", "lsq"), ("angular", "norm"), ("span", "scale")])
def test_rounds_of_blocks_agree_with_float64_on_full_reruns(
    model: Any, generator: torch.Generator, metric: str, compensation: str, n: int
) -> None:
    spread(model, generator)
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(
        model, 4, tokens, metric=metric, compensation=compensation, span=n, candidates=[0, 1, 2, 3, 4], preset="paper"
    )
    blocks, scales, scores, _ = span.prune(
        model, tokens, 4, n, span.METRICS[metric], span.SCALES[compensation], {0, 1, 2, 3, 4}
    )
    assert [r.block for r in result.rounds] == blocks
    assert result.removed == [layer for block in blocks for layer in block]
    np.testing.assert_allclose(result.scales, scales, rtol=SCALE)
    for ours, theirs in zip(result.rounds, scores, strict=True):
        assert set(ours.scores) <= set(theirs)
        # A cosine near 1 has lost digits by the time it is taken from 1.
        assert ours.scores == pytest.approx({first: theirs[first] for first in ours.scores}, rel=SCALE, abs=SCALE / 10)


def test_one_block_is_the_default_of_span_and_an_export_equals_the_seam_model(
    model: Any, generator: torch.Generator, tmp_path: Path
) -> None:
    spread(model, generator)
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(model, 3, tokens, metric="span", keep=[5], preset="paper")
    (block,), _, _, oracle = span.prune(model, tokens, 3, 3, span.influence, span.magnitude_scale, {0, 1, 2, 3, 4})
    assert [r.block for r in result.rounds] == [block]
    assert block == list(range(block[0], block[0] + 3))
    loaded = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "out"))
    assert loaded.config.num_hidden_layers == 3
    decoder = Decoder(model)
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
        assert error(loaded(input_ids=tokens).logits, expected) < relative(torch.float32)
        assert error(expected, oracle(input_ids=tokens, use_cache=False).logits) < relative(torch.float32)


def test_greedy_blocks_export_what_the_seam_model_gives(model: Any, generator: torch.Generator, tmp_path: Path) -> None:
    spread(model, generator)
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(model, 4, tokens, metric="bi", span=2, compensation="lsq", preset="paper")
    loaded = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "out"))
    decoder = Decoder(model)
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
        assert error(loaded(input_ids=tokens).logits, expected) < relative(torch.float32)


def test_every_span_of_a_model_has_its_score_and_scale_and_the_map_holds_them_all(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("qwen2")
    tokens = draw_tokens(model, generator)
    exact = copy.deepcopy(model).double()
    states = [iterative.boundary_states(exact, sequence) for sequence in tokens]
    for n in range(2, 7):
        result = prunecomp.score(model, tokens, metric="span", span=n)
        assert list(result.scores) == list(range(7 - n))
        for p, score in result.scores.items():
            assert score == pytest.approx(span.influence(states, p, p + n), rel=SCALE)
            assert result.scales[p] == pytest.approx(span.magnitude_scale(states, p, p + n), rel=SCALE)
    expected = [[1.0 - span.influence(states, i, j) for j in range(7)] for i in range(7)]
    np.testing.assert_allclose(result.similarity, expected, atol=SCALE)
    assert result.record()["similarity"] == result.similarity
    path = similarity_map(result, tmp_path / "map.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    single = prunecomp.score(model, tokens)
    assert single.similarity is None
    with pytest.raises(OptionError, match="a span of 2 or more"):
        similarity_map(single, tmp_path / "none.png")
    monkeypatch.setattr(drawing, "INSTALLED", False)
    with pytest.raises(OptionError, match=r"prunecomp\[report\]"):
        similarity_map(result, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    with pytest.raises(OptionError, match="--span 7: the model has 6 layers"):
        prunecomp.score(model, tokens, span=7)


@pytest.mark.parametrize("packed", [False, True])
def test_tokens_of_windows_of_different_lengths_count_alike(generator: torch.Generator, packed: bool) -> None:
    model = spread(build("mistral"), generator).double()
    windows = ragged(model, generator)
    sequences = [row[:n] for row, n in zip(windows.tokens, windows.lengths.tolist(), strict=True)]
    decoder = (PackingDecoder if packed else Decoder)(model)
    # Not ratios by channel: in a window of two tokens one of them may be near zero, and magnify any rounding.
    pruner = Pruner(decoder, windows, metric="bi", compensation="lsq", span=2, placement=room(5, 3))
    rounds = run_rounds(pruner, 4, list(range(5)), one_shot=False)
    blocks, scales, scores, _ = span.prune(model, sequences, 4, 2, span.influence, span.least_squares, set(range(5)))
    assert [r.block for r in rounds] == blocks
    np.testing.assert_allclose([r.scale for r in rounds], scales, rtol=SCALE)
    for ours, theirs in zip(rounds, scores, strict=True):
        assert ours.scores == pytest.approx({first: theirs[first] for first in ours.scores}, abs=SCALE / 10)


def test_a_cut_runs_what_lies_above_it_and_the_matrix_is_taken_anew(generator: torch.Generator) -> None:
    model = spread(build("llama", num_hidden_layers=8), generator)
    windows = Windows(draw_tokens(model, generator), "test")
    outcomes = []
    for cache in (True, False):
        pruner = Pruner(Decoder(model), windows, metric="span", span=2, placement=room(7), cache=cache)
        outcomes.append(run_rounds(pruner, 6, list(range(8)), one_shot=False))
    assert records(outcomes[0]) == records(outcomes[1])
    alive = list(range(8))
    for earlier, later in pairwise(outcomes[0]):
        cut = alive.index(earlier.block[0])
        alive = [layer for layer in alive if layer not in earlier.block]
        # The topmost survivor is run even below a cut at the top: what leaves the model is not kept.
        assert later.layer_forwards == max(len(alive) - cut, 1)


@pytest.mark.parametrize("top", [[4, 5], [3, 4, 5], [5]])
def test_a_cut_at_the_very_top(generator: torch.Generator, top: list[int]) -> None:
    model = spread(build("llama"), generator)
    tokens = draw_tokens(model, generator)
    pruner = Pruner(Decoder(model), Windows(tokens, "test"), metric="bi", span=2, placement=room(5))
    pruner.score()
    before = pruner.layer_forwards
    pruner.remove(*top)
    scores = pruner.score()
    assert pruner.layer_forwards - before == 1
    fresh = Pruner(Decoder(model), Windows(tokens, "test"), metric="bi", span=2, placement=room(5))
    fresh._run.remove(top)
    assert fresh.score() == scores
    assert set(scores) == set(range(5 - len(top)))


def test_one_shot_takes_blocks_and_scales_of_the_dense_model(model: Any, generator: torch.Generator) -> None:
    spread(model, generator)
    tokens = draw_tokens(model, generator)
    # Of the neighbours that are free, 0-1 and 2-3 do not overlap, and 1-2 is made to matter most.
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(4.0)
        model.model.layers[2].mlp.down_proj.weight.mul_(16.0)
    exact = copy.deepcopy(model).double()
    states = [iterative.boundary_states(exact, sequence) for sequence in tokens]
    scores = {p: span.influence(states, p, p + 2) for p in range(3)}
    result = prunecomp.prune(
        model, 4, tokens, span=2, one_shot=True, candidates=[0, 1, 2, 3, 5], compensation="lsq", preset="paper"
    )
    assert result.layer_forwards == 6
    expected = sorted([[0, 1], [2, 3]], key=lambda block: scores[block[0]])
    assert [r.block for r in result.rounds] == expected
    np.testing.assert_allclose(
        result.scales, [span.least_squares(states, b[0], b[0] + 2) for b in expected], rtol=SCALE
    )
    for r in result.rounds:
        assert r.score == pytest.approx(scores[r.block[0]], rel=SCALE)


def test_one_shot_without_room_for_whole_blocks_is_refused(generator: torch.Generator) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    with pytest.raises(OptionError, match="--layers 5 must be a multiple of it"):
        prunecomp.prune(model, 5, tokens, span=2, one_shot=True, preset="paper")
    with pytest.raises(OptionError, match="no block of --span layers is left"):
        prunecomp.prune(model, 2, tokens, span=2, one_shot=True, candidates=[0, 2, 4], preset="paper")


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({"candidates": [0, 2, 4, 5]}, [2, 1]),  # 4-5 is all there is for two
        ({"keep": [1, 3, 5]}, None),
        ({"candidates": [1, 2, 3, 5]}, [3]),
    ],
)
def test_where_no_block_is_whole_shorter_ones_go(
    generator: torch.Generator, options: dict[str, Any], blocks: list[int] | None
) -> None:
    model = spread(build("llama"), generator)
    tokens = draw_tokens(model, generator)
    layers = 2 if blocks is None else 3
    result = prunecomp.prune(model, layers, tokens, metric="span", **options, preset="paper")
    free = set(range(6)) - set(options.get("keep", [])) & set(options.get("candidates", range(6)))
    expected, scales, _, _ = span.prune(model, tokens, layers, layers, span.influence, span.magnitude_scale, free)
    assert [r.block for r in result.rounds] == expected
    assert [len(r.block) for r in result.rounds] == (blocks or [1, 1])
    np.testing.assert_allclose(result.scales, scales, rtol=SCALE)


@pytest.mark.parametrize("boundaries", [1, 2, 3, 4])
def test_where_not_all_states_fit_windows_are_taken_in_turn(generator: torch.Generator, boundaries: int) -> None:
    model = spread(build("llama", hidden_size=16, intermediate_size=24), generator)
    tokens = draw_tokens(model, generator, windows=7, seqlen=1400)  # two to a micro-batch
    model.config.max_position_embeddings = 2048
    outcomes = []
    for placement in (room(5), room(boundaries)):
        pruner = Pruner(Decoder(model), Windows(tokens, "test"), metric="span", span=2, placement=placement)
        outcomes.append((pruner, run_rounds(pruner, 4, list(range(6)), one_shot=False)))
    (_, plain), (pruner, rounds) = outcomes
    assert [r.block for r in rounds] == [r.block for r in plain]
    np.testing.assert_allclose([r.scale for r in rounds], [r.scale for r in plain], rtol=SCALE)
    for ours, theirs in zip(rounds, plain, strict=True):
        assert ours.scores == pytest.approx(theirs.scores, rel=SCALE)
        assert ours.layer_forwards == len(ours.scores) + 1  # nothing is kept from round to round
    rows = max(shard.states.shape.num_tokens for shard in pruner._run.shards)
    assert len(pruner._run.shards) > 1
    assert 5 * rows <= boundaries * 7 * 1400, "all boundaries of a part fit where some of all windows do"
    for shard in pruner._run.shards:
        assert not shard.states.kept
        assert not shard.states._spare


@given(
    count=st.integers(1, 300), boundaries=st.integers(1, 80), tiers=st.lists(st.integers(0, 40), min_size=3, max_size=3)
)
def test_turns_hold_all_boundaries_in_the_room_of_some(count: int, boundaries: int, tiers: list[int]) -> None:
    windows = Windows(torch.zeros(count, 512, dtype=torch.int64), "test")
    capacity = dict(zip(Tier, tiers, strict=True))
    placement = Placement(8, None, capacity, Tier.device, {})
    if sum(tiers) * count < boundaries:  # not even one window at a time
        with pytest.raises(OptionError, match="blocks of layers are scored"):
            take_turns(boundaries, windows, placement)
        return
    turns, held = take_turns(boundaries, windows, placement)
    assert sum(held.values()) >= boundaries
    largest = -(-count // turns)
    assert all(held[tier] * largest <= capacity[tier] * count for tier in Tier)
    assert turns == 1 or sum(capacity.values()) < boundaries


def test_too_little_memory_for_one_window_is_refused(generator: torch.Generator) -> None:
    model = build("llama")
    windows = Windows(draw_tokens(model, generator, windows=2), "test")
    with pytest.raises(OptionError, match="all 5 states of a window at once, and memory is left for 2"):
        Pruner(Decoder(model), windows, metric="span", span=3, placement=room(2))
    Pruner(Decoder(model), windows, metric="span", span=1, placement=room(0)).score()  # needs none


@pytest.mark.parametrize("states", [0, 3, 5])
def test_a_streamed_run_equals_a_resident_one_bit_for_bit(
    generator: torch.Generator, saved: Callable[..., Path], tmp_path: Path, states: int
) -> None:
    model = spread(build("qwen3", num_hidden_layers=6), generator)
    tokens = draw_tokens(model, generator)
    base = saved(model)
    shape = model_shape(model, families.find("qwen3"), torch.float32)
    demand = gram_demand(shape)
    full = place(shape, 5, 24, Memory(10**12), CPU, demand=demand).peak_nbytes[Tier.device]
    assert full - place(shape, 5, 24, Memory(10**12), CPU).peak_nbytes[Tier.device] == demand.nbytes(5 * 24)
    boundary = 5 * 24 * shape.hidden_size * shape.itemsize
    limit = full - 4 * shape.layer_nbytes + (states - 5 + 1) * boundary
    plain = prunecomp.prune(base, 4, tokens, metric="bi", span=2, preset="paper")
    streamed = prunecomp.prune(
        base, 4, tokens, metric="bi", span=2, device_memory=limit, disk=None if states else tmp_path, preset="paper"
    )
    assert streamed.placement.group_size == 1
    assert streamed.placement.capacity[Tier.device] == states
    assert streamed.removed == plain.removed
    if states == 3:  # in turn: smaller micro-batches round differently
        np.testing.assert_allclose(streamed.scales, plain.scales, rtol=SCALE)
    else:
        assert records(streamed.rounds) == records(plain.rounds)
    assert {path.name for path in tmp_path.iterdir()} == {"base"}  # no state file is left


def test_losses_of_trials_leave_the_states_of_a_span_run_alone(generator: torch.Generator) -> None:
    model = spread(build("llama"), generator)
    tokens = draw_tokens(model, generator)
    pruner = Pruner(Decoder(model), Windows(tokens, "test"), metric="bi", span=2, placement=room(5))
    scores = pruner.score()
    trial = pruner._run.trial()
    trial.remove([2, 3], 1.5)
    loss = trial.loss(keep=False)
    fresh = Run(Decoder(model), Windows(tokens, "test"), room(5), stack=trial.stack, measured=False)
    assert loss == fresh.loss()
    assert pruner._run.shards[0].states.kept == {1, 2, 3, 4, 5}
    assert pruner.score() == scores
    pruner.remove(2, 3)
    pruner._run.loss()  # brings the statistics up to date, and takes no Gram matrix
    after = pruner.score()
    other = Pruner(Decoder(model), Windows(tokens, "test"), metric="bi", span=2, placement=room(5))
    other._run.remove([2, 3], pruner.stack.seams[2])
    assert after == other.score()


def test_an_early_stop_looks_at_blocks(generator: torch.Generator) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator, windows=64, seqlen=8)
    full = prunecomp.prune(model, 4, tokens, metric="angular", span=2, preset="paper")
    early = prunecomp.prune(model, 4, tokens, metric="angular", span=2, confidence=0.9, preset="paper")
    assert early.removed == full.removed
    assert min(r.sequences for r in early.rounds) < 64
