"""What an error message advises works when it is done as it is said, with what the failed run left behind."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import prunecomp.checkpoint.fold as fold
import prunecomp.checkpoint.proof as proof
import prunecomp.checkpoint.verify as verify
from prunecomp.checkpoint import export
from tests.command_line import Result, invoke
from tests.models import build, draw_tokens

Prune = Callable[..., Result]


@pytest.fixture
def prune(generator: torch.Generator, tmp_path: Path) -> Prune:
    model = build("llama")
    model.save_pretrained(tmp_path / "base")
    np.save(tmp_path / "ids.npy", draw_tokens(model, generator).numpy())

    def run(*options: str, out: str = "out") -> Result:
        command = ["prune", str(tmp_path / "base"), "--layers", "2", "--calibration", str(tmp_path / "ids.npy")]
        command += ["--metric", "given", "--given", "2,3", "--preset", "paper", "--out", str(tmp_path / out)]
        return invoke(*command, *options)

    return run


def advised(failed: Result) -> list[list[str]]:
    """The options of each piece of advice, as they stand in the message."""
    assert failed.exit_code in (6, 7), failed.output
    text = re.sub(r"\s+", " ", failed.output)
    return [found.split() for found in re.findall(r"--resume(?: --[a-z-]+(?: (?:up|down))?)?", text)]


def off_in(form: str) -> Callable[..., Any]:
    """A fold that is off by five percent where it is read back in one of the forms."""
    right = verify.logits_in_float32

    def logits(decoder: Any, tokens: Any, device: Any, seams: Any, weights: Any = None, *rest: Any) -> torch.Tensor:
        given = () if weights is None else (weights, *rest)
        found = right(decoder, tokens, device, seams, *given)
        plan = inspect.getclosurevars(weights).nonlocals.get("plan") if weights is not None else None
        wrong = plan is not None and plan.form == form and weights.__qualname__.startswith("folded_exactly")
        return 1.05 * found if wrong else found

    return logits


@pytest.mark.parametrize(("form", "other"), [("up", "down"), ("down", "up")])
def test_a_failed_verification(form: str, other: str, prune: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "logits_in_float32", off_in(form))
    for advice in (["--resume", "--fold", other], ["--resume", "--no-verify"]):
        failed = prune("--fold", form, out=advice[-1])
        assert failed.exit_code == 7
        assert advice in advised(failed)
        done = prune(*advice, *([] if "--fold" in advice else ["--fold", form]), out=advice[-1])
        assert done.exit_code == 0, done.output


def test_an_export_that_computes_something_else(prune: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    right = export.prune_stored
    monkeypatch.setattr(export, "prune_stored", lambda *some: {**right(*some), "rms_norm_eps": 3.0})
    failed = prune()
    assert advised(failed) == [["--resume", "--no-verify"]]
    assert prune(*advised(failed)[0]).exit_code == 0


def test_a_fold_that_is_not_exact(prune: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    """The early stream is too small for the norms' epsilon."""
    right = proof._prove_layer

    def strict(decoder: Any, plan: Any, *rest: Any) -> Any:
        if plan.form == "down":
            monkeypatch.setattr(proof, "EPSILON_TOLERANCE", 0.0)
        try:
            return right(decoder, plan, *rest)
        finally:
            monkeypatch.setattr(proof, "EPSILON_TOLERANCE", 2.0**-4)

    monkeypatch.setattr(proof, "_prove_layer", strict)
    failed = prune("--fold", "down")
    assert failed.exit_code == 6
    assert advised(failed) == [["--resume", "--fold", "up"]]
    assert "run anew with --compensation none, without --fold, and another --out" in re.sub(r"\s+", " ", failed.output)
    assert prune("--compensation", "none", out="another").exit_code == 0
    assert prune(*advised(failed)[0]).exit_code == 0


def test_a_fold_that_overflows(prune: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fold.FoldPlan.folded

    def overflowing(plan: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return right(plan, name, tensor * 1e38 if plan.form == "up" else tensor)

    monkeypatch.setattr(fold.FoldPlan, "folded", overflowing)
    monkeypatch.setattr(fold, "fold_tensor", partial_range(fold.fold_tensor))
    failed = prune()
    assert failed.exit_code == 6, failed.output
    assert "go on with --resume and the other --fold" in re.sub(r"\s+", " ", failed.output)
    assert prune("--resume", "--fold", "down").exit_code == 0


def partial_range(right: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A fold in a dtype whose range ends at a tenth of float32's."""

    def folding(name: str, tensor: torch.Tensor, factor: float, *rest: Any) -> torch.Tensor:
        return right(name, tensor * torch.where(tensor.abs() > 1e30, 1e30, 1.0), factor, *rest)

    return folding
