"""What was done in a comparison, at what cost: a piece of work is known by what it depends on, and done once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from prunecomp.engine.run import whole

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """What tells one pruned model from another."""

    alive: tuple[int, ...]
    seams: tuple[float, ...]
    replacement: int = 0
    """Of weights, the last: a number for the model and the step in which it came about. 0 where none are replaced: then
    it makes no difference how a model came about."""

    @property
    def bare(self) -> Model:
        """With nothing in its seams, as a repair begins."""
        return Model(self.alive, (1.0,) * len(self.alive))


@dataclass(frozen=True)
class Step:
    """A piece of work on a model: ``kind`` is update, score, seam, repair, loss or tasks."""

    kind: str
    model: Model
    in_turn: bool | None = None
    """As its route's; None where no calibration windows are run."""
    what: tuple[Any, ...] = ()


@dataclass
class Cost:
    """What steps took."""

    layer_forwards: float = 0.0
    """Of the calibration set."""
    window_forwards: int = 0
    """Passes of one window of any kind through one layer, of all processes."""
    seconds: float = 0.0

    def add(self, other: Cost) -> None:
        self.layer_forwards += other.layer_forwards
        self.window_forwards += other.window_forwards
        self.seconds += other.seconds


class Counting(Protocol):
    """Runs that count what they run."""

    @property
    def window_forwards(self) -> int: ...


class Calibrating(Protocol):
    """What counts passes of the calibration set."""

    @property
    def layer_forwards(self) -> float: ...


@dataclass
class Fits:
    """What repairs have run, which have runs of their own."""

    windows: int
    """Of a calibration set."""
    layer_forwards: float = 0.0

    @property
    def window_forwards(self) -> int:
        """Of all processes."""
        return round(self.layer_forwards * self.windows)


class StepCache:
    """Steps with their results and costs."""

    def __init__(self) -> None:
        self.total = Cost()
        """Of everything that was run."""
        self._results: dict[Step, Any] = {}
        self._costs: dict[Step, Cost] = {}

    def __contains__(self, step: Step) -> bool:
        return step in self._results

    def once(self, step: Step, work: Callable[[], T], runs: Counting, run: Calibrating | None = None) -> T:
        """What ``work`` gives, done when it is asked for first; ``run`` is the calibration run that it may use."""
        if step not in self._results:
            with self.charged(step, runs, run):
                self._results[step] = work()
        result: T = self._results[step]
        return result

    def release(self, steps: Iterable[Step]) -> None:
        """Let go of results that nobody will ask for; what they cost stays known."""
        for step in steps:
            del self._results[step]

    @contextmanager
    def charged(self, step: Step, runs: Counting, run: Calibrating | None) -> Iterator[None]:
        def so_far() -> tuple[float, int, float]:
            return 0.0 if run is None else run.layer_forwards, runs.window_forwards, time.perf_counter()

        before = so_far()
        yield
        after = so_far()
        cost = Cost(after[0] - before[0], after[1] - before[1], after[2] - before[2])
        self._costs.setdefault(step, Cost()).add(cost)
        self.total.add(cost)

    def cost(self, steps: Iterable[Step]) -> Cost:
        """Of several steps together."""
        total = Cost()
        for step in steps:
            total.add(self._costs.get(step, Cost()))
        total.layer_forwards = whole(total.layer_forwards)
        return total
