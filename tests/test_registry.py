"""Other packages' metrics and compensations, by entry point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prunecomp
from prunecomp.compensation import COMPENSATIONS
from prunecomp.errors import OptionError
from prunecomp.metrics import METRICS
from tests.models import build, draw_tokens

PACKAGE = """
from prunecomp.compensation import Seam
from prunecomp.metrics import Metric


class Middle(Metric):
    def score(self, evidence):
        alive = evidence.stack.alive
        return {layer: abs(p - len(alive) // 2) for p, layer in enumerate(alive)}


def half(cut):
    return Seam(0.5)
"""
ENTRY_POINTS = """
[prunecomp.metrics]
middle = theirs_of_a_test:Middle
bi = theirs_of_a_test:Middle
broken = theirs_of_a_test:Nothing

[prunecomp.compensations]
half = theirs_of_a_test:half
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs_of_a_test.py").write_text(PACKAGE)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("theirs")
def test_an_installed_package_adds_a_metric_and_a_compensation(generator: Any) -> None:
    model = build("llama")
    result = prunecomp.prune(
        model, 2, draw_tokens(model, generator), metric="middle", compensation="half", preset="paper"
    )
    assert result.removed == [3, 2]
    assert result.scales == [0.5, 0.5]
    assert {"middle", "broken", "bi"} <= set(METRICS)
    assert "half" in COMPENSATIONS


@pytest.mark.usefixtures("theirs")
def test_a_name_of_ours_is_not_replaced_and_a_broken_one_says_so() -> None:
    assert METRICS["bi"].__module__ == "prunecomp.metrics.block_influence"
    assert list(METRICS).count("bi") == 1
    with pytest.raises(OptionError, match=r"--metric broken: theirs_of_a_test:Nothing cannot be imported"):
        METRICS["broken"]


def test_an_unknown_name_is_told_with_those_that_are_known() -> None:
    with pytest.raises(OptionError, match=r"--metric magic: choose bi, .*random"):
        METRICS["magic"]
    with pytest.raises(OptionError, match=r"--compensation magic: choose scale, "):
        COMPENSATIONS["magic"]
