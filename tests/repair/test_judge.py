"""The judge: what it compares, and that it takes nothing where nothing is best on a stretch that was left out."""

from __future__ import annotations

import copy
from collections.abc import Mapping

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
    assert set(judged.losses) == {"joint, ridge 1", "none"}
    for number in range(4):
        rows = slice(2 * number, 2 * number + 2)
        others = torch.cat([tokens[: rows.start], tokens[rows.stop :]])
        held_to_oracle(model, judged.losses, f"stretch {number + 1}", list(others), tokens[rows])


def test_each_source_is_left_out_once_where_there_are_several(generator: torch.Generator) -> None:
    model = build("llama").double()
    prose, code = draw_tokens(model, generator, windows=3), draw_tokens(model, generator, windows=2)
    sources = [(prose, 3.0), (code, 2.0)]
    judged = prunecomp.prune(
        model, 2, sources, samples=5, seqlen=prose.shape[1], metric="given", given=[2, 4], compensation="none",
        repair="auto",
    ).repair  # fmt: skip
    assert judged is not None
    names = list(judged.losses["none"])
    assert len(names) == 2
    for name, others, left_out in ((names[0], code, prose), (names[1], prose, code)):
        held_to_oracle(model, judged.losses, name, list(others), left_out)


def held_to_oracle(
    model: torch.nn.Module,
    losses: Mapping[str, Mapping[str, float]],
    name: str,
    others: list[torch.Tensor],
    left_out: torch.Tensor,
) -> None:
    """What was seen on what was left out, beside float64 fits on the others."""
    fitted, _ = refit.repair(model, others, [2, 4], 1.0, joint=True)
    assert losses["joint, ridge 1"][name] == pytest.approx(loss(fitted, left_out), rel=1e-5)
    bare = copy.deepcopy(model)
    prunecomp.prune(model, 2, left_out, metric="given", given=[2, 4], compensation="none").apply(bare)
    assert losses["none"][name] == pytest.approx(loss(bare, left_out), rel=1e-6)


def test_what_is_taken_is_no_worse_than_nothing_on_any_stretch(generator: torch.Generator) -> None:
    model = build("llama")
    for seed in range(3):
        tokens = draw_tokens(model, generator, windows=8)
        judged = prunecomp.prune(
            model, 2, tokens, metric="given", given=[2, 4], compensation="scale", repair="auto", seed=seed
        ).repair
        assert judged is not None
        assert set(judged.losses) == {"joint, ridge 1", "loop", "none"}
        assert no_worse(judged.losses[judged.taken], judged.losses["none"])
        fair = [losses for losses in judged.losses.values() if no_worse(losses, judged.losses["none"])]
        assert sum(judged.losses[judged.taken].values()) == min(sum(one.values()) for one in fair)


def test_one_window_gets_the_documented_default(generator: torch.Generator) -> None:
    model = build("llama")
    judged = prunecomp.prune(model, 1, draw_tokens(model, generator, windows=1), repair="auto").repair
    assert judged is not None
    assert (judged.taken, judged.losses) == ("joint, ridge 1", {})


def test_stretches_are_neighbours_spread_over_all_of_a_long_text() -> None:
    windows = Windows(torch.zeros(512, 1024, dtype=torch.int64), "zeros")
    stretches = stretches_of(windows)
    assert {name: len(rows) for name, rows in stretches.items()} == {f"stretch {n}": 16 for n in range(1, 5)}
    judged = torch.cat(list(stretches.values())).tolist()
    assert judged == sorted(set(judged))
    assert (judged[0], judged[-1]) == (0, 511)
