"""The judge: what it compares, and that it takes nothing where nothing is best on a stretch that was left out."""

from __future__ import annotations

import copy

import pytest
import torch

import prunecomp
from prunecomp.data.windows import Windows
from prunecomp.repair.judge import no_worse, stretches_of
from tests.models import build, draw_tokens
from tests.oracles import refit


@torch.no_grad()
def loss(model: torch.nn.Module, windows: torch.Tensor) -> float:
    return sum(float(model(input_ids=t[None], labels=t[None], use_cache=False).loss) for t in windows) / len(windows)


def test_each_loss_is_of_a_fit_without_the_stretch(generator: torch.Generator) -> None:
    model = build("llama").double()
    tokens = draw_tokens(model, generator, windows=8)
    result = prunecomp.prune(model, 2, tokens, metric="given", given=[2, 4], compensation="none", repair="auto")
    judged = result.repair
    assert judged is not None
    assert set(judged.losses) == {"joint, ridge 1", "joint, ridge 3", "joint, ridge 1, no scalar", "none"}
    for number in range(4):
        rows = slice(2 * number, 2 * number + 2)
        others = torch.cat([tokens[: rows.start], tokens[rows.stop :]])
        for ridge in (1.0, 3.0):
            fitted, _ = refit.repair(model, list(others), [2, 4], ridge, joint=True)
            assert judged.losses[f"joint, ridge {ridge:g}"][number] == pytest.approx(
                loss(fitted, tokens[rows]), rel=1e-5
            )
        bare = copy.deepcopy(model)
        prunecomp.prune(model, 2, tokens, metric="given", given=[2, 4], compensation="none").apply(bare)
        assert judged.losses["none"][number] == pytest.approx(loss(bare, tokens[rows]), rel=1e-6)


def test_what_is_taken_is_no_worse_than_nothing_on_any_stretch(generator: torch.Generator) -> None:
    model = build("llama")
    for seed in range(3):
        tokens = draw_tokens(model, generator, windows=8)
        judged = prunecomp.prune(model, 2, tokens, repair="auto", seed=seed).repair
        assert judged is not None
        assert no_worse(judged.losses[judged.taken], judged.losses["none"])
        fair = [losses for losses in judged.losses.values() if no_worse(losses, judged.losses["none"])]
        assert sum(judged.losses[judged.taken]) == min(map(sum, fair))


def test_one_window_gets_the_documented_default(generator: torch.Generator) -> None:
    model = build("llama")
    judged = prunecomp.prune(model, 1, draw_tokens(model, generator, windows=1), repair="auto").repair
    assert judged is not None
    assert (judged.taken, judged.losses) == ("joint, ridge 1", {})


def test_stretches_are_neighbours_spread_over_all_of_a_long_text() -> None:
    windows = Windows(torch.zeros(512, 1024, dtype=torch.int64), "zeros")
    stretches = stretches_of(windows)
    assert [len(rows) for rows in stretches] == [16] * 4
    assert torch.cat(stretches).tolist() == sorted(set(torch.cat(stretches).tolist()))
    assert (int(stretches[0][0]), int(stretches[-1][-1])) == (0, 511)
