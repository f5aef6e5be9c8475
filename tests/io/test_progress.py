"""How far work is, on a terminal, in a log, and in numbers."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from rich.console import Console

import prunecomp
from prunecomp.engine.latency import REPEATS
from prunecomp.engine.progress import STEPS, Part, Whole
from prunecomp.io import progress
from prunecomp.io.progress import Bars, Lines, duration, told
from tests.models import build, draw_tokens


def drawn(show: Bars) -> None:
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
    show = Bars(console)
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


@pytest.mark.parametrize("kind", [Bars, Lines])
def test_a_stage_that_fails_leaves_nothing_behind(kind: type[Bars] | type[Lines]) -> None:
    show = kind(Console(file=io.StringIO()))
    with pytest.raises(ValueError, match="within"), show("outer", 1, "x"), show("inner", 1, "x"):
        raise ValueError("within")
    with show("outer", 1, "x") as advance:
        advance(1)


class Clock:
    """A clock that is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_has_a_line_at_a_change_of_stage_and_one_every_half_minute() -> None:
    file, clock = io.StringIO(), Clock()
    show = Lines(Console(file=file, width=20), clock)  # a line is not folded
    with show("pruning", 100, "") as whole:
        with show("round 1 of 2: scoring", 8, "x") as advance:
            advance(8)
            whole(25)
        clock.now = 20.0
        with show("round 2 of 2: scoring", 8, "x"):
            clock.now = 24.0
            with show("loss\x1b[31m", 8, "x"):
                assert len(file.getvalue().splitlines()) == 1, "stages may change faster than anyone reads"
            show._tell(progress.LINE_SECONDS)
            assert len(file.getvalue().splitlines()) == 1
            clock.now = 50.0
            whole(25)
            show._tell(progress.LINE_SECONDS)
    first, second = file.getvalue().splitlines()
    assert first == "pruning, round 2 of 2: scoring; 25% after 20 s; about 1 min 00 s left"
    assert second == "pruning, round 2 of 2: scoring; 50% after 50 s; about 50 s left"


def test_short_work_says_nothing_in_a_log() -> None:
    file = io.StringIO()
    with Lines(Console(file=file))("pruning", 10, "") as advance:
        advance(10)
    assert file.getvalue() == ""


def test_a_log_is_told_of_a_stage_that_does_not_advance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    file = io.StringIO()
    with Lines(Console(file=file))("pruning", 10, ""):
        deadline = time.monotonic() + 300
        while not file.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert file.getvalue().startswith("pruning; 0% after ")


@pytest.mark.parametrize(
    ("terminal", "environment", "kind"), [(True, "xterm", Bars), (True, "dumb", Lines), (False, "xterm", Lines)]
)
def test_bars_are_for_what_can_draw_them(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: str, kind: type
) -> None:
    monkeypatch.setenv("TERM", environment)
    assert type(told(Console(file=io.StringIO(), force_terminal=terminal))) is kind


def test_a_notebook_has_bars_where_it_has_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_jupyter=True)
    for there, kind in ((object(), Bars), (None, Lines)):
        monkeypatch.setattr(progress, "find_spec", lambda name, there=there: there)
        assert type(told(console)) is kind


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")]
)
def test_durations_are_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Heard:
    """Everything that a run tells of itself."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.advanced: dict[str, int] = {}
        self.fractions: list[int] = []

    @contextmanager
    def __call__(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        self.stages.append((name, total))

        def advance(steps: int) -> None:
            self.advanced[name] = self.advanced.get(name, 0) + steps
            if unit == "":
                self.fractions.append(self.advanced[name])

        yield advance


def test_a_whole_is_told_in_shares_of_what_its_parts_take() -> None:
    heard = Heard()
    whole = Whole(heard, "pruning", {"round 1 of 2": Part(60, 6), "round 2 of 2": Part(20, 2), "evaluating": Part(20)})
    with whole.open():
        whole.begin("round 1 of 2")
        with whole("scoring", 6, "x") as advance:
            advance(3)
            assert heard.advanced["pruning"] == 300
            advance(3)
        whole.begin("round 2 of 2")
        assert heard.advanced["pruning"] == 600
        with whole("scoring", 2, "x") as advance:
            advance(2)
        with whole("dense: evaluating", 4, "x") as advance:
            advance(1)
            assert heard.advanced["pruning"] == 850
    assert heard.advanced["pruning"] == STEPS
    assert [name for name, _ in heard.stages] == [
        "pruning", "round 1 of 2: scoring", "round 2 of 2: scoring", "dense: evaluating",
    ]  # fmt: skip


def test_a_round_that_takes_longer_than_expected_makes_the_next_ones_longer() -> None:
    heard = Heard()
    parts = {"round 1 of 2": Part(10, 10), "round 2 of 2": Part(10, 10), "evaluating": Part(10)}
    whole = Whole(heard, "pruning", parts)
    with whole.open():
        whole.begin("round 1 of 2")
        for name, steps in (("scoring", 10), ("candidates", 20)):
            with whole(name, steps, "x") as advance:
                advance(steps)
        assert heard.advanced["pruning"] == STEPS * 30 // 50
        whole.begin("round 2 of 2")
        for name, steps in (("scoring", 10), ("candidates", 20)):
            with whole(name, steps, "x") as advance:
                advance(steps // 2)
        assert heard.advanced["pruning"] == STEPS * 45 // 70  # 30, 15 of 30, 10
    assert heard.fractions == sorted(heard.fractions), "it never goes back"


def test_a_run_says_which_round_which_model_and_comes_to_its_end(generator: torch.Generator) -> None:
    model, heard = build("llama"), Heard()
    tokens = draw_tokens(model, generator)
    prunecomp.prune(model, 2, tokens, keep=[5], eval=tokens, repair="refit", ridge=1.0, progress=heard)  # 5 is the top
    names = [name for name, _ in heard.stages]
    assert names == [
        "pruning", "round 1 of 2: scoring", "round 2 of 2: scoring", "repairing", "evaluating: dense: loss",
        "evaluating: pruned: loss",
    ]  # fmt: skip
    assert heard.advanced["pruning"] == STEPS
    totals: dict[str, int] = {}
    for name, total in heard.stages:
        totals[name] = totals.get(name, 0) + total
    assert heard.advanced == totals


def test_a_repair_that_is_judged_is_not_over_when_it_begins(generator: torch.Generator) -> None:
    model, heard, before = build("llama"), Heard(), []
    tokens = draw_tokens(model, generator)

    @contextmanager
    def listening(name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        if name == "judging":
            before.append(heard.advanced["pruning"])
        with heard(name, total, unit) as advance:
            yield advance

    prunecomp.prune(model, 2, tokens, repair="auto", progress=listening)
    assert len(before) == 1
    assert before[0] < STEPS // 4, "judging is most of the work"


def test_latency_is_told_while_it_is_measured(generator: torch.Generator) -> None:
    model, heard = build("llama"), Heard()
    tokens = draw_tokens(model, generator)
    prunecomp.prune(model, target="latency=0.84x", calibration=tokens, preset="paper", progress=heard)
    assert heard.stages[0] == ("measuring latency", 1 + REPEATS)
    assert [name for name, _ in heard.stages[1:]] == ["pruning", "round 1 of 1: scoring"]
    assert heard.advanced["measuring latency"] == 1 + REPEATS


def test_a_comparison_says_which_arm(generator: torch.Generator) -> None:
    model, heard = build("llama"), Heard()
    tokens = draw_tokens(model, generator)
    prunecomp.compare(model, [1, 2], tokens, eval={"some": tokens}, progress=heard)
    names = {name for name, _ in heard.stages}
    assert {"comparing", "dense: some: loss"} <= names
    assert any(re.fullmatch(r"bi, \w+(, iterative)?, 1 gone: some: loss", name) for name in names), names


def test_progress_true_tells_the_error_stream(
    generator: torch.Generator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "CHANGE_SECONDS", 0.0)
    model = build("llama")
    result = prunecomp.prune(model, 1, draw_tokens(model, generator), progress=True)
    assert "pruning, round 1 of 1: scoring; " in capsys.readouterr().err
    assert result.removed
    prunecomp.prune(model, 1, draw_tokens(model, generator), progress=False)
    assert capsys.readouterr().err == ""
