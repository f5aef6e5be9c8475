"""How long work tells how far it is, without knowing who listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

Advance = Callable[[int], None]
"""Called with the number of steps just done."""

Progress = Callable[[str, int, str], AbstractContextManager[Advance]]
"""``progress(description, total, unit)`` opens a stage of ``total`` steps and gives the function that advances it."""

STEPS = 1000
"""That a whole is told in; they have no unit."""


def silent(description: str, total: int, unit: str) -> AbstractContextManager[Advance]:
    """Progress for those who want none."""
    return nullcontext(lambda steps: None)


class Within:
    """A :data:`Progress` that says where its stages stand: ``round 3 of 8: scoring``."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.place = ""

    @contextmanager
    def __call__(self, description: str, total: int, unit: str) -> Iterator[Advance]:
        last = description.rpartition(": ")[2]
        placed = f"{self.place}: {description}" if self.place not in ("", last) else description
        with self._progress(placed, total, unit) as advance:
            yield advance


@dataclass
class Part:
    """A part of a whole."""

    work: float
    """What it is expected to take, in a unit of the whole's own."""
    steps: float = 0.0
    """That its stages are expected to have, where they are known."""
    announced: float = 0.0
    """That they have turned out to have so far."""
    done: float = 0.0
    over: bool = False

    @property
    def growth(self) -> float:
        """How many times as large it is as was expected."""
        return max(1.0, self.announced / self.steps) if self.steps else 1.0

    @property
    def fraction(self) -> float:
        """That is done."""
        steps = max(self.steps, self.announced)
        return 1.0 if self.over else min(1.0, self.done / steps) if steps else 0.0

    def grow(self, times: float) -> None:
        self.work, self.steps = self.work * times, self.steps * times


class Whole(Within):
    """Long work in parts that follow each other: a stage of its own around theirs, whose steps are shares of the work,
    so that the time left of it can be told.

    Stages are of the part that was begun last; one that bears the name of a part begins it. If a part turns out larger
    than was expected, those of its kind that follow (``round 2 of 8`` and ``round 3 of 8``) are taken to be so too.
    """

    def __init__(self, progress: Progress, name: str, parts: Mapping[str, Part]) -> None:
        super().__init__(progress)
        self._name, self._parts = name, dict(parts)
        self._told = 0
        self._since = time.perf_counter()
        self.seconds: dict[str, float] = {}
        """That parts of each kind took; complete once the whole is."""
        self._advance: Advance = lambda steps: None

    @contextmanager
    def open(self) -> Iterator[Whole]:
        """Within, the work is done."""
        with self._progress(self._name, STEPS, "") as self._advance:
            yield self
            self._clock()
            self._advance(STEPS - self._told)

    def begin(self, part: str) -> None:
        """Those before it are over."""
        self._clock()
        if part in self._parts and part != self.place:
            names, last = list(self._parts), self.place
            for name in names[: names.index(part)]:
                self._parts[name].over = True
            self._parts[part].over = False  # several models are repaired in turn
            if last in self._parts and kind(last) == kind(part):
                for name in names[names.index(part) :]:
                    if kind(name) == kind(part):
                        self._parts[name].grow(self._parts[last].growth)
        self.place = part
        self._tell()

    @contextmanager
    def aside(self, part: str) -> Iterator[None]:
        """Within, the work is another's; then it is that of before again."""
        before = self.place
        self.begin(part)
        yield
        self.begin(before)

    @contextmanager
    def __call__(self, description: str, total: int, unit: str) -> Iterator[Advance]:
        last = description.rpartition(": ")[2]
        if last in self._parts:
            self.begin(last)
        part = self._parts.get(self.place, Part(0.0))
        part.announced += total
        with super().__call__(description, total, unit) as advance:

            def both(steps: int) -> None:
                advance(steps)
                part.done += steps
                self._tell()

            yield both

    def _clock(self) -> None:
        since, self._since = self._since, time.perf_counter()
        if self.place:
            self.seconds[kind(self.place)] = self.seconds.get(kind(self.place), 0.0) + self._since - since

    def _tell(self) -> None:
        sizes = {name: part.work * part.growth for name, part in self._parts.items()}
        done = sum(size * self._parts[name].fraction for name, size in sizes.items())
        steps = int(STEPS * done / sum(sizes.values())) if done else 0
        if steps > self._told:  # an estimate that was mended never goes back
            self._advance(steps - self._told)
            self._told = steps


def kind(part: str) -> str:
    """Rounds are of one kind."""
    return part.split()[0]
