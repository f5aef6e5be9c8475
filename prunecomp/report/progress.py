"""A progress bar that only shows up when the work is long enough to want one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from prunecomp.engine.progress import Advance

DELAY_SECONDS = 2.0


class RateColumn(TextColumn):
    """Steps a second, in the unit of the stage."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: object) -> Text:
        speed, fields = getattr(task, "speed", None), getattr(task, "fields", {})
        return Text("" if speed is None else f"{speed:,.0f} {fields.get('unit', '')}/s", style="dim")


class RichProgress:
    """Progress of a run on the error stream; a bar appears once a stage has run for two seconds.

    A stage within a stage has its bar below the other's.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None

    @contextmanager
    def __call__(self, description: str, total: int, unit: str) -> Iterator[Advance]:
        if self._bars is not None:
            with self._inner(self._bars, description, total, unit) as advance:
                yield advance
            return
        self._bars = bars = Progress(
            TextColumn("{task.description:<12}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        task = bars.add_task(description, total=total, unit=unit)
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
    def _inner(self, bars: Progress, description: str, total: int, unit: str) -> Iterator[Advance]:
        task = bars.add_task(description, total=total, unit=unit, visible=False)
        started = time.monotonic()

        def advance(steps: int) -> None:
            bars.update(task, advance=steps, visible=time.monotonic() - started > DELAY_SECONDS)

        try:
            yield advance
        finally:
            bars.remove_task(task)
