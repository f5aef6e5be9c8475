"""How far long work is, told to people: bars on a terminal and in a notebook, lines of text everywhere else.

Both listen to stages (see :mod:`prunecomp.engine.progress`). The outermost is the whole, and the time left is its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.text import Text

from prunecomp.io.escape import one_line

DELAY_SECONDS = 2.0
"""What is over sooner is not told of."""

LINE_SECONDS = 30.0
"""From one line to the next while a stage lasts."""

CHANGE_SECONDS = 5.0
"""From one line to the next where stages change: many are over in less."""

Stage = AbstractContextManager[Callable[[int], None]]


def told(console: Console | None = None) -> Callable[[str, int, str], Stage]:
    """Bars where ``console``, by default the error stream, can draw them over, and lines where it cannot."""
    console = console or Console(stderr=True)
    draws = console.is_jupyter and find_spec("ipywidgets") is not None
    return Bars(console) if draws or (console.is_terminal and not console.is_dumb_terminal) else Lines(console)


def duration(seconds: float) -> str:
    """As people say it: ``1 h 05 min``, ``3 min 20 s``, ``12 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def seconds_left(done: float, total: float, seconds: float) -> float | None:
    """At the speed of the ``seconds`` so far; None where nothing is done, or too little to tell by."""
    return seconds * (total - done) / done if done > 0.01 * total and seconds > DELAY_SECONDS else None


class _Count(MofNCompleteColumn):
    """How many steps of how many; a stage without a unit has none worth telling."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.fields.get("unit") else Text()


class _Rate(ProgressColumn):
    """Steps a second, in the unit of the stage."""

    def render(self, task: Task) -> Text:
        speed, unit = task.speed, task.fields.get("unit")
        return Text("" if speed is None or not unit else f"{speed:,.0f} {unit}/s", style="dim")


class _Left(ProgressColumn):
    """Of the whole, from its own speed since it began."""

    def render(self, task: Task) -> Text:
        left = seconds_left(task.completed, task.total or 0.0, task.elapsed or 0.0)
        return Text("" if left is None else f"{duration(left)} left", style="cyan")


class Bars:
    """Bars that appear once the work has gone on for two seconds; a stage within a stage has its bar below."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None

    @contextmanager
    def __call__(self, description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        if self._bars is not None:
            with self._inner(self._bars, description, total, unit) as advance:
                yield advance
            return
        self._bars = bars = Progress(
            TextColumn("{task.description:<12}", markup=False), BarColumn(), TaskProgressColumn(), _Count(), _Rate(),
            _Left(), console=self._console, transient=True,
        )  # fmt: skip
        task = bars.add_task(one_line(description), total=total, unit=unit)
        timer = threading.Timer(DELAY_SECONDS, bars.start)
        timer.daemon = True
        timer.start()
        try:
            yield lambda steps: bars.advance(task, steps)
        finally:
            self._bars = None
            timer.cancel()
            if bars.live.is_started:
                bars.stop()

    @contextmanager
    def _inner(self, bars: Progress, description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        task = bars.add_task(one_line(description), total=total, unit=unit, visible=False)
        started = time.monotonic()

        def advance(steps: int) -> None:
            bars.update(task, advance=steps, visible=time.monotonic() - started > DELAY_SECONDS)

        try:
            yield advance
        finally:
            bars.remove_task(task)


class Lines:
    """A line every half a minute, and where a stage gives way to another: for logs, which no bar can draw over."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._stages: list[list[Any]] = []  # description, steps done, of how many
        self._began = self._last = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        stage: list[Any] = [description, 0, total]
        if self._stages:
            with self._open(stage) as advance:
                yield advance
            return
        self._began = self._last = self._clock()
        over = threading.Event()
        ticking = threading.Thread(target=self._tick, args=(over,), daemon=True)  # a layer may take longer than a line
        ticking.start()
        try:
            with self._open(stage) as advance:
                yield advance
        finally:
            over.set()
            ticking.join()

    @contextmanager
    def _open(self, stage: list[Any]) -> Iterator[Callable[[int], None]]:
        with self._lock:
            self._stages.append(stage)
        self._tell(CHANGE_SECONDS)

        def advance(steps: int) -> None:
            stage[1] += steps

        try:
            yield advance
        finally:
            with self._lock:
                self._stages.remove(stage)

    def _tick(self, over: threading.Event) -> None:
        while not over.wait(1.0):
            self._tell(LINE_SECONDS)

    def _tell(self, gap: float) -> None:
        """Write a line, unless one was written within the ``gap``."""
        with self._lock:
            now = self._clock()
            if now - self._last < gap or not self._stages:
                return
            self._last = now
            (whole, done, total), inner = self._stages[0], [stage[0] for stage in self._stages[1:]]
            left = seconds_left(done, total, now - self._began)
            parts = [
                one_line(", ".join([whole, *inner])),
                f"{done / total if total else 1:.0%} after {duration(now - self._began)}",
                *([] if left is None else [f"about {duration(left)} left"]),
            ]
            self._console.print("; ".join(parts), markup=False, highlight=False, soft_wrap=True)
