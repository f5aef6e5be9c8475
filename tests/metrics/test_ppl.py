"""Leave-one-out loss: against float64 with full re-runs, against forks bit for bit, and counted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

import prunecomp
from prunecomp.compensation import Seam
from prunecomp.data.windows import Windows
from prunecomp.engine import states
from prunecomp.engine.candidates import leave_one_out
from prunecomp.engine.states import Tier
from prunecomp.model.decoder import Decoder
from prunecomp.pruning.pruner import Pruner
from prunecomp.pruning.rounds import run_rounds
from tests.engine.test_streaming import needed
from tests.models import build, draw_tokens
from tests.oracles import iterative
from tests.tolerances import SCALE


@torch.no_grad()
def loss(model: Any, windows: torch.Tensor) -> float:
    return sum(float(model(input_ids=t[None], labels=t[None], use_cache=False).loss) for t in windows) / len(windows)


def oracle(
    model: Any, windows: torch.Tensor, layers: int, candidates: list[int], lookahead: bool
) -> tuple[list[int], list[dict[int, float]]]:
    """Removed layers and every round's losses: weights scaled in place, whole models run, in float64."""
    work = copy.deepcopy(model).double()
    names = list(range(len(work.model.layers)))
    removed, rounds = [], []
    for _ in range(layers):
        states = [iterative.boundary_states(work, tokens) for tokens in windows]
        scales = {name: iterative.magnitude_scale(states, p) for p, name in enumerate(names)}
        losses = {}
        for name in names:
            if name in candidates:
                trial, left = copy.deepcopy(work), list(names)
                iterative.remove(trial, left, name, scales[name] if lookahead else 1.0)
                losses[name] = loss(trial, windows)
        layer = min(losses, key=lambda name: (losses[name], name))
        iterative.remove(work, names, layer, scales[layer])
        removed.append(layer)
        rounds.append(losses)
    return removed, rounds


@pytest.mark.parametrize("lookahead", [False, True])
def test_losses_and_choices_agree_with_float64_on_full_reruns(
    model: Any, generator: torch.Generator, lookahead: bool
) -> None:
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(model, 3, tokens, metric="ppl", lookahead=lookahead, preset="paper")
    removed, rounds = oracle(model, tokens, 3, [1, 2, 3, 4], lookahead)
    assert result.removed == removed
    for made, losses in zip(result.rounds, rounds, strict=True):
        assert made.scores == pytest.approx(losses, rel=SCALE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compensation", ["scale", "lsq"])
def test_a_loss_has_the_bits_of_the_pruned_model_itself(
    generator: torch.Generator, dtype: torch.dtype, compensation: str
) -> None:
    model = build("qwen2", num_hidden_layers=8).to(dtype)
    tokens = draw_tokens(model, generator, windows=7, seqlen=33)
    pruner = Pruner(Decoder(model), Windows(tokens, ""), metric="ppl", compensation=compensation)
    for _ in range(3):
        scores = pruner.score()
        for layer, score in scores.items():
            trial = pruner._run.fork()
            trial.remove((layer,))
            assert trial.loss(keep=False) == score, layer
        pruner.remove(min((layer for layer in scores if layer > 0), key=lambda layer: scores[layer]))


@pytest.mark.parametrize("lookahead", [False, True])
def test_cached_uncached_and_streamed_runs_agree_bit_for_bit(
    model: Any, generator: torch.Generator, tmp_path: Path, lookahead: bool
) -> None:
    tokens = draw_tokens(model, generator, windows=7, seqlen=33)
    model.save_pretrained(tmp_path / "base")
    options = {"metric": "ppl", "lookahead": lookahead, "candidates": range(6)}
    plain = prunecomp.prune(tmp_path / "base", 4, tokens, **options, preset="paper")
    full = prunecomp.prune(tmp_path / "base", 4, tokens, cache=False, **options, preset="paper")
    boundary = tokens.numel() * 48 * 4
    limits = [needed(model, tokens, 2) + 6 * boundary, needed(model, tokens, 0) + 7 * boundary]
    streamed = [
        prunecomp.prune(tmp_path / "base", 4, tokens, device_memory=limit, disk=tmp_path, **options, preset="paper")
        for limit in limits
    ]
    assert all(other.placement.group_size == 1 for other in streamed)
    for other in (full, *streamed):
        assert other.removed == plain.removed
        assert other.scales == plain.scales
        assert [r.scores for r in other.rounds] == [r.scores for r in plain.rounds]
    assert plain.layer_forwards < full.layer_forwards


def test_streamed_weights_are_visited_once_for_all_candidates(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator, windows=7, seqlen=33)
    model.save_pretrained(tmp_path / "base")
    result = prunecomp.prune(
        tmp_path / "base",
        1,
        tokens,
        metric="ppl",
        device_memory=needed(model, tokens, 0) + 400_000,
        disk=tmp_path,
        preset="paper",
    )
    decoder = result.model_source.load()
    visits: list[int] = []
    walk = decoder.weights.walk
    monkeypatch.setattr(decoder.weights, "walk", lambda groups: visits.extend(g[0] for g in groups) or walk(groups))
    pruner = Pruner(decoder, result.calibration, metric="ppl", placement=result.placement, candidates=[1, 2, 3, 4])
    pruner.score()
    assert visits == [*range(6), *range(1, 6)]  # the scoring pass, and once for all candidates


CAPACITIES = {
    "no-room": ({Tier.device: 7}, 4),
    "two-at-a-time": ({Tier.device: 7 + 4 + 4}, 2),
    "all-at-once": ({Tier.device: 7 + 4 + 14}, 1),
    "on-disk": ({Tier.device: 3, Tier.disk: 40}, 1),
}
"""Boundaries for which there is room, and the blocks that four micro-batches then make: seven boundaries are the run's
own, four candidate streams are kept in the first round, and seven streams of a block want the rest."""


@pytest.mark.parametrize("case", CAPACITIES)
def test_streamed_blocks_are_as_large_as_fits_and_stay_within_the_room_for_states(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    capacity, blocks = CAPACITIES[case]
    model = build("llama", num_hidden_layers=8)
    tokens = draw_tokens(model, generator, windows=8, seqlen=33)
    model.save_pretrained(tmp_path / "base")
    probe = prunecomp.prune(
        tmp_path / "base",
        1,
        tokens,
        metric="last",
        device_memory=needed(model, tokens, 0),
        disk=tmp_path,
        preset="paper",
    )
    placement = replace(
        probe.placement, micro_batch=2, group_size=1, disk_folder=tmp_path,
        capacity={**dict.fromkeys(Tier, 0), **capacity}, carry=Tier.device,
    )  # fmt: skip
    decoder = probe.model_source.load()
    windows = Windows(tokens, "")
    candidates = range(1, 7)
    plain = Pruner(
        Decoder(model), windows, metric="ppl", placement=replace(placement, group_size=None), candidates=candidates
    )
    expected = run_rounds(plain, 3, list(candidates), one_shot=False)
    walks: list[int] = []
    walk = decoder.weights.walk

    def seen(groups: Sequence[Sequence[int]]) -> Generator[Sequence[int]]:
        walks.append(len(groups))
        return walk(groups)

    monkeypatch.setattr(decoder.weights, "walk", seen)
    with counted_states(monkeypatch) as peak:
        streamed = Pruner(decoder, windows, metric="ppl", placement=placement, candidates=candidates)
        streamed.score()
        assert len(walks) == 1 + blocks, "the scoring pass, and once a block for all candidates"
        rounds = run_rounds(streamed, 3, list(candidates), one_shot=False)
    assert [r.scores for r in rounds] == [r.scores for r in expected]
    boundary = tokens.numel() * 48 * 4
    for tier in (Tier.device, Tier.disk):
        carried = boundary if tier is placement.carry else 0
        assert peak[tier] <= capacity.get(tier, 0) * boundary + carried


@contextmanager
def counted_states(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Tier, int]]:
    """The most bytes of states that each tier holds at once."""
    alive: WeakKeyDictionary[Any, tuple[Tier, int]] = WeakKeyDictionary()
    peak = dict.fromkeys(Tier, 0)
    original = states.StateStore._open

    def opened(self: states.StateStore, tier: Tier, **how: Any) -> states.Boundary:
        boundary = original(self, tier, **how)
        alive[boundary] = (tier, self.shape.nbytes)
        for each in Tier:
            peak[each] = max(peak[each], sum(nbytes for held, nbytes in alive.values() if held is each))
        return boundary

    with monkeypatch.context() as patch:
        patch.setattr(states.StateStore, "_open", opened)
        yield peak


def test_a_round_that_breaks_off_leaves_nothing_half_kept(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams kept in round one are replaced in round two, which ends in its second micro-batch; nothing of either may
    be taken for what it is not."""
    model = build("llama", num_hidden_layers=10)
    windows = Windows(draw_tokens(model, generator, windows=6), "")
    decoder = Decoder(model)
    options = {"metric": "ppl", "compensation": "none", "candidates": range(1, 9)}
    placement = replace(Pruner(decoder, windows, **options).placement, micro_batch=2)
    pruner = Pruner(decoder, windows, placement=placement, **options)
    pruner.score()  # keeps the streams of candidates 1 to 5 at position 6
    pruner._cut(8)
    pruner._run.scores = {7: 0.0}  # so that this round wants them, and that of 6, at position 7
    call, calls = decoder.call, 0

    def failing(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 3 + 18 + 5:  # the layer above the cut, the first micro-batch's candidates, layer 6 for the second's
            raise KeyboardInterrupt
        return call(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "call", failing)
        with pytest.raises(KeyboardInterrupt):
            pruner.score()
    pruner._cut(7)
    again = Pruner(decoder, windows, placement=placement, cache=False, **options)
    again._put((8,), Seam(1.0))
    again._put((7,), Seam(1.0))
    assert pruner.score() == again.score()


def test_a_part_whose_loss_alone_was_asked_for_has_no_say(generator: torch.Generator) -> None:
    model = build("llama")
    windows = Windows(draw_tokens(model, generator, windows=40), "")
    pruner = Pruner(Decoder(model), windows, metric="ppl", candidates=range(1, 5), confidence=0.5)
    pruner.score()
    pruner._cut(2)
    pruner.loss()  # brings every part up to date
    scores = pruner.score()
    counted = pruner._metric._counted(pruner._round_candidates())
    first = pruner._metric.sequence_scores(pruner._round_candidates())[1]
    assert scores.keys() == {1, 3, 4}
    assert len(first) == sum(shard.windows.count for shard, _ in counted) >= 16


def test_forwards_are_counted_where_they_happen_and_are_half_of_slebs(model: Any, generator: torch.Generator) -> None:
    calls: list[int] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, args, output: calls.append(len(output) * (output.shape[1] == 24)))
    tokens = draw_tokens(model, generator, seqlen=24)  # other rows are of a check beforehand
    result = prunecomp.prune(model, 3, tokens, metric="ppl", preset="paper")
    assert sum(calls) == result.layer_forwards * 5
    # Round one: the model once for its statistics, and for each candidate the layers above it.
    assert result.rounds[0].layer_forwards == 6 + sum(6 - 1 - p for p in (1, 2, 3, 4))
    alive = list(range(6))
    scoring = 6
    for number, made in enumerate(result.rounds):
        whole = (4 - number) * (len(alive) - 1)  # each candidate's model run by itself
        assert made.layer_forwards - scoring <= whole / 2
        scoring = len(alive) - 1 - alive.index(made.layer)  # the pass for the next statistics, above the cut
        alive.remove(made.layer)


def test_streams_kept_from_the_last_round_start_where_they_were_kept(generator: torch.Generator) -> None:
    """A cut at the top: all candidates' streams below it go on from their kept boundary, for as many layers as lie
    above it."""
    model = build("llama", num_hidden_layers=8)
    tokens = draw_tokens(model, generator)
    pruner = Pruner(Decoder(model), Windows(tokens, ""), metric="ppl", candidates=[1, 2, 3, 4, 5, 6])
    pruner.score()
    kept = pruner._metric._streams[pruner._run.shards[0]]
    k = len(next(iter(kept.below.values())).alive) + 1
    pruner.remove(6)
    before = pruner.layer_forwards
    scores = pruner.score()
    below, above = list(range(1, k)), list(range(k, 6))
    main = 1  # the scoring pass runs the one layer above the cut
    assert pruner.layer_forwards - before == main + len(below) * (7 - k) + sum(7 - 1 - p for p in above)
    again = Pruner(Decoder(model), Windows(tokens, ""), metric="ppl", candidates=[1, 2, 3, 4, 5, 6], cache=False)
    again._put((6,), Seam(pruner.stack.seams[6] if len(pruner.stack.seams) > 6 else 1.0))
    assert again.score() == pytest.approx(scores, rel=0, abs=0)


def test_ragged_windows_weigh_by_their_tokens(model: Any, generator: torch.Generator) -> None:
    tokens = draw_tokens(model, generator, windows=5)
    lengths = [24, 20, 11, 5, 2]
    rows = tokens.clone()
    for row, n in zip(rows, lengths, strict=True):
        row[n:] = -1
    scores = prunecomp.score(model, rows.numpy(), metric="ppl").scores
    exact = copy.deepcopy(model).double()
    iterative.drop_layer(exact, 2)
    with torch.no_grad():
        each = [
            float(exact(input_ids=t[None, :n], labels=t[None, :n], use_cache=False).loss) * (n - 1)
            for t, n in zip(tokens, lengths, strict=True)
        ]
    assert scores[2] == pytest.approx(sum(each) / (sum(lengths) - 5), rel=SCALE)


def test_one_shot_and_early_stop(generator: torch.Generator) -> None:
    model = build("llama", num_hidden_layers=8)
    tokens = draw_tokens(model, generator, windows=40)
    first = prunecomp.prune(model, 1, tokens, metric="ppl", preset="paper").rounds[0].scores
    one_shot = prunecomp.prune(model, 3, tokens, metric="ppl", one_shot=True, preset="paper")
    assert one_shot.removed == sorted(first, key=lambda layer: first[layer])[:3]
    early = prunecomp.prune(model, 2, tokens, metric="ppl", confidence=0.999, preset="paper")
    full = prunecomp.prune(model, 2, tokens, metric="ppl", preset="paper")
    assert early.rounds[0].layer == full.rounds[0].layer
    if early.rounds[0].sequences == 40:
        assert early.rounds[0].scores == pytest.approx(full.rounds[0].scores, rel=1e-6)


def test_only_what_is_asked_for_is_scored(generator: torch.Generator) -> None:
    model = build("llama")
    pruner = Pruner(Decoder(model), Windows(draw_tokens(model, generator), ""), metric="ppl", candidates=[2, 4])
    assert set(pruner.score()) == {2, 4}
    shard = pruner._run.shards[0]
    sums = leave_one_out(pruner._run, shard, {5: pruner.stack.remove(5)}, None)
    assert sums.shape == (5, 1)


def test_progress_comes_to_what_was_announced(generator: torch.Generator) -> None:
    model = build("llama")
    announced: dict[str, float] = {}
    advanced: dict[str, float] = {}

    @contextmanager
    def progress(name: str, total: float, unit: str) -> Iterator[Callable[[float], None]]:
        announced[name] = announced.get(name, 0) + total

        def advance(by: float) -> None:
            advanced[name] = advanced.get(name, 0) + by

        yield advance

    prunecomp.prune(model, 2, draw_tokens(model, generator), metric="ppl", progress=progress, preset="paper")
    assert "round 2 of 2: candidates" in announced
    assert advanced == announced
