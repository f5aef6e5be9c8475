"""What a run does that is told nothing of compensation and repair, and what each of the two implies of the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.errors import OptionError
from prunecomp.options import PruneOptions
from prunecomp.pruning.inputs import MIXTURE
from tests.models import build, draw_tokens


@pytest.mark.parametrize(
    ("given", "compensation", "repair"),
    [
        ({}, "none", "auto"),
        ({"preset": "paper"}, "scale", "none"),
        ({"preset": "paper", "repair": "joint"}, "scale", "joint"),
        ({"preset": "paper", "compensation": "lsq"}, "lsq", "none"),
        ({"repair": "none"}, "scale", "none"),
        ({"repair": "refit"}, "none", "refit"),
        ({"compensation": "norm"}, "norm", "none"),
        ({"compensation": "none"}, "none", "none"),
        ({"compensation": "scale", "repair": "joint"}, "scale", "joint"),
        ({"metric": "ppl", "lookahead": True}, "scale", "none"),
    ],
)
def test_what_is_named_says_what_is_meant(given: dict[str, Any], compensation: str, repair: str) -> None:
    options = PruneOptions.of("prune", {"layers": 1, **given})
    assert (options.compensation, options.repair) == (compensation, repair)


def test_other_functions_put_the_scale_in_place() -> None:
    for caller in ("score", "pruner_for"):
        assert PruneOptions.of(caller, {}).compensation == "scale"


def test_the_default_is_the_judged_fit_of_layers_chosen_with_nothing_in_place(generator: torch.Generator) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator, windows=8)
    usual, asked, bare = (
        prunecomp.prune(model, 2, tokens, **options)
        for options in ({}, {"compensation": "none", "repair": "auto", "ridge": 1.0}, {"compensation": "none"})
    )
    assert usual.repair is not None
    assert asked.repair is not None
    assert usual.removed == bare.removed
    assert usual.stack.seams == asked.stack.seams
    assert usual.repair.losses == asked.repair.losses


def test_the_bundled_texts_are_kinds_to_leave_out(reference_model: Path) -> None:
    repair = prunecomp.prune(reference_model, 1, samples=8, seqlen=32).repair
    assert repair is not None
    assert list(repair.losses["none"]) == [str(text) for text in MIXTURE]


def test_fewer_windows_than_kinds_are_of_the_first(reference_model: Path) -> None:
    result = prunecomp.prune(reference_model, 1, samples=2, seqlen=32)
    assert [one["source"] for one in result.record()["calibration"]["sources"]] == [str(text) for text in MIXTURE[:2]]


def test_memory_that_is_short_for_the_repair_alone_says_so(tmp_path: Path, generator: torch.Generator) -> None:
    model = build("llama", intermediate_size=512)
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    tokens = draw_tokens(model, generator, windows=4)
    limit = next(
        limit
        for limit in range(10**5, 10**8, 10**5)
        if fits(lambda limit=limit: prunecomp.plan(folder, 2, samples=4, seqlen=24, device_memory=limit, repair="none"))
    )
    with pytest.raises(OptionError, match=r"--device-memory .*; or use --repair none"):
        prunecomp.prune(folder, 2, tokens, device_memory=limit)
    prunecomp.prune(folder, 2, tokens, device_memory=limit, repair="none")


def fits(run: Any) -> bool:
    try:
        run()
    except OptionError:
        return False
    return True


def test_a_plan_holds_what_the_repair_takes(tmp_path: Path, generator: torch.Generator) -> None:
    model = build("llama")
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    for repair in ("refit", "joint", "auto"):
        plan = prunecomp.plan(folder, 2, samples=8, seqlen=24, repair=repair)
        took = prunecomp.prune(folder, 2, draw_tokens(model, generator, windows=8, seqlen=24), repair=repair).repair
        assert took is not None
        assert 0.4 * plan.repair.layer_forwards <= took.layer_forwards <= plan.repair.layer_forwards
    assert prunecomp.plan(folder, 2, repair="none").repair.layer_forwards == 0
