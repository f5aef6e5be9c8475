"""Progress bars within progress bars."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from prunecomp.report import progress
from prunecomp.report.progress import RichProgress


def drawn(show: RichProgress) -> None:
    """The bars as they are now, once the thread that starts them has come to it."""
    bars = show._bars
    assert bars is not None
    deadline = time.monotonic() + 300
    while not bars.live.is_started:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    bars.refresh()


def test_a_stage_within_a_stage_is_shown_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY_SECONDS", -1.0)  # over before it began
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    show = RichProgress(console)
    with show("comparing", 2, "layers") as outer:
        for name in ("scoring", "loss"):
            with show(name, 3, "windows") as inner:
                inner(3)
                drawn(show)
            outer(1)
    with show("writing", 1, "bytes") as advance:
        advance(1)
        drawn(show)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(name in printed for name in ("comparing", "scoring", "loss", "writing"))


def test_a_stage_that_fails_leaves_nothing_behind() -> None:
    show = RichProgress(Console(file=io.StringIO()))
    with pytest.raises(ValueError, match="within"), show("outer", 1, "x"), show("inner", 1, "x"):
        raise ValueError("within")
    with show("outer", 1, "x") as advance:
        advance(1)
