"""Ending a round early: how often the choice differs, and that nothing else does."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import prunecomp
from benchmarks.early_stop import needed
from prunecomp.compensation import Removal, magnitude_scale, put_in_place
from prunecomp.data.sources import read_source
from prunecomp.data.windows import Windows, consecutive_windows
from prunecomp.engine.placement import available_memory, place
from prunecomp.engine.run import Run
from prunecomp.errors import OptionError
from prunecomp.metrics import METRICS, Candidates
from prunecomp.metrics.stopping import FEWEST, LOOKS, separated, student_quantile
from prunecomp.model.source import open_source
from tests.models import build, draw_tokens
from tests.seeds import seed

DRAWS = 200
SURE = 1e-9
"""How seldom a rule that just keeps its promise may fail here."""
SAMPLES = 128
SEQLEN = 32


@pytest.fixture(scope="module")
def pools(reference_model: Path) -> dict[tuple[str, int], torch.Tensor]:
    """For each metric, of the bundled model and of what is left of it after one and two rounds, the score of every
    layer on every window of the bundled calibration text's first stretch: sums over tokens, [windows, layers]."""
    model_source = open_source(reference_model, dtype="float32", device="cpu", tokenizer=None, allow_pickle=False)
    source = read_source(reference_model / "calibration.txt", model_source.tokenize, model_source.config.vocab_size)
    windows = consecutive_windows(source, SEQLEN).take(slice(0, 400))
    placement = place(
        model_source.shape(), windows.count, SEQLEN, available_memory(model_source.device), model_source.device
    )
    run = Run(model_source.load(), windows, placement)
    made = {}
    for number in range(3):
        run.update(run.shards[0])
        candidates = Candidates(run, run.stack.alive)
        for name in ("bi", "angular"):
            made[name, number] = METRICS[name]().sequence_scores(candidates)[1]
        block = (run.stack.alive[int(made["bi", number].sum(dim=0).argmin())],)
        put_in_place(run, block, magnitude_scale(Removal(run, block, run.statistics)))
    return made


def most(draws: int, probability: float) -> int:
    """What a binomial count exceeds with a probability below SURE."""
    tail = 1.0
    for count in range(draws + 1):
        tail -= math.comb(draws, count) * probability**count * (1 - probability) ** (draws - count)
        if tail < SURE:
            return count
    return draws


def looks(sums: torch.Tensor, confidence: float) -> tuple[int, int]:
    """The choice, and how many sequences it took."""
    n = needed(sums, confidence)
    return int(sums[:n].sum(dim=0).argmin()), n


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("metric", ["bi", "angular"])
def test_an_early_choice_differs_no_more_often_than_promised(
    pools: dict[tuple[str, int], torch.Tensor], metric: str, number: int
) -> None:
    pool = pools[metric, number]
    random = np.random.default_rng(seed())
    differ = {0.999: 0, 0.9: 0, 0.5: 0}
    seen = dict.fromkeys(differ, 0)
    for _ in range(DRAWS):
        drawn = pool[torch.from_numpy(random.choice(len(pool), SAMPLES, replace=False))]
        whole = int(drawn.sum(dim=0).argmin())
        for confidence in differ:
            choice, n = looks(drawn, confidence)
            differ[confidence] += choice != whole
            seen[confidence] += n
    for confidence, count in differ.items():
        assert count <= most(DRAWS, 1 - confidence), (confidence, count)
    assert seen[0.5] <= seen[0.9] <= seen[0.999] <= DRAWS * SAMPLES
    if number == 0:  # the bundled model's first layer to go stands out: the test must not pass for want of early ends
        assert seen[0.999] < 0.75 * DRAWS * SAMPLES


@pytest.mark.parametrize("candidates", [2, 6])
def test_candidates_that_differ_by_noise_alone_are_the_hardest_and_keep_the_promise(candidates: int) -> None:
    random = torch.Generator().manual_seed(seed())
    differ = early = 0
    for _ in range(1000):
        sums = torch.randn(SAMPLES, candidates, generator=random, dtype=torch.float64)
        choice, n = looks(sums, 0.9)
        differ += choice != int(sums.sum(dim=0).argmin())
        early += n < SAMPLES
    assert early > 50
    assert differ <= most(1000, 0.1)


def test_few_sequences_never_settle_it_and_all_do() -> None:
    sums = torch.tensor([[0.0, 1.0]], dtype=torch.float64).repeat(64, 1)
    assert not separated(sums[: FEWEST - 1], 64, 0.9)
    assert separated(sums[:FEWEST], 64, 0.9)
    assert separated(torch.rand(64, 5, dtype=torch.float64), 64, 0.999999)
    assert separated(sums[:2, :1], 64, 0.9)


def test_a_difference_settles_it_from_the_bound_on() -> None:
    """One other candidate, whose differences to the lowest have the mean m and the deviation 1: n - 1 degrees."""
    n, population, confidence = FEWEST, 4 * FEWEST, 0.9
    noise = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(n // 2)
    noise = noise / noise.std()
    bound = student_quantile(1 - (1 - confidence) / LOOKS, n - 1) * ((1 - n / population) / n) ** 0.5
    for mean, settled in ((bound * 1.001, True), (bound * 0.999, False)):
        sums = torch.stack([torch.zeros(n, dtype=torch.float64), noise + mean], dim=1)
        assert separated(sums, population, confidence) is settled


@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"),  # Abramowitz and Stegun, table 26.10; the last from its integral
    [(0.95, 15, 1.753), (0.995, 15, 2.947), (0.9995, 30, 3.646), (0.9995, 120, 3.373), (1 - 1e-5, 31, 5.0249)],
)
def test_quantiles_of_student(probability: float, degrees: int, quantile: float) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(quantile, rel=1e-3)


@pytest.mark.parametrize("metric", [pytest.param("bi", marks=pytest.mark.slow), "angular"])
def test_a_run_that_ends_early_chooses_what_the_full_one_does(
    reference_model: Path, metric: str, tmp_path: Path
) -> None:
    text = reference_model / "calibration.txt"
    options = {"samples": 64, "seqlen": 64, "metric": metric, "dtype": "float32"}
    early = prunecomp.prune(reference_model, 3, text, confidence=0.999, **options, preset="paper")
    full = prunecomp.prune(reference_model, 3, text, **options, preset="paper")
    assert early.removed == full.removed
    used = [r.sequences for r in early.rounds]
    assert used[0] < 64
    assert early.layer_forwards < full.layer_forwards
    # What a round rests on is what was looked at: the same as a run on those sequences alone.
    shuffled = full.calibration.shuffled(0).tokens
    alone = prunecomp.prune(
        reference_model, 1, shuffled[: used[0]].numpy(), metric=metric, dtype="float32", preset="paper"
    )
    assert early.rounds[0].scores == pytest.approx(alone.rounds[0].scores, rel=1e-9)
    assert early.scales[0] == pytest.approx(alone.scales[0], rel=1e-9)
    streamed = prunecomp.prune(
        reference_model, 3, text, confidence=0.999, device_memory=25_000_000, disk=tmp_path, **options, preset="paper"
    )
    assert streamed.placement.group_size == 1
    for other in (
        streamed,
        prunecomp.prune(reference_model, 3, text, confidence=0.999, cache=False, **options, preset="paper"),
    ):
        assert other.scales == early.scales
        assert [r.scores for r in other.rounds] == [r.scores for r in early.rounds]
        assert [r.sequences for r in other.rounds] == used


def test_sequences_left_out_of_one_round_are_made_up_for_in_the_next(generator: torch.Generator) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator, windows=40)
    early = prunecomp.prune(model, 3, tokens, confidence=0.5, preset="paper")
    shuffled = Windows(tokens, "").shuffled(0).tokens
    for number, made in enumerate(early.rounds):
        gone = [r.layer for r in early.rounds[:number]]
        order = [*gone, made.layer]
        alone = prunecomp.prune(
            model, number + 1, shuffled[: made.sequences], metric="given", given=order, preset="paper"
        )
        if len({r.sequences for r in early.rounds[: number + 1]}) == 1:  # else the seams rest on other sequences
            assert made.scale == pytest.approx(alone.scales[-1], rel=1e-9)
    assert all(r.sequences <= 40 for r in early.rounds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 1.0}, "--confidence 1.0: give a probability"),
        ({"confidence": 0.9, "metric": "magnitude"}, "--metric magnitude is no mean over sequences"),
        ({"confidence": 0.9, "metric": "random"}, "--metric random is no mean over sequences"),
        ({"lookahead": True}, "--metric bi runs no candidate"),
        ({"span": 2, "metric": "magnitude"}, "scores single layers"),
        ({"parity": "paper"}, "--parity paper: choose official"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, object], message: str) -> None:
    model = build("llama", num_hidden_layers=10)
    with pytest.raises(OptionError, match=message):
        prunecomp.prune(model, 2, torch.zeros(4, 8, dtype=torch.int64), **options, preset="paper")
