"""Arms on their way through the tree of pruned models, and what is run for them there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prunecomp.compare.arms import Arm
from prunecomp.compare.steps import Step
from prunecomp.engine.run import Run
from prunecomp.engine.statistics import Statistics
from prunecomp.metrics import Metric

Block = tuple[int, ...]


@dataclass(frozen=True)
class Ranking:
    """A metric's scores of a model, and the neighbours that each is for."""

    scores: dict[int, float]
    blocks: dict[int, Block]


@dataclass(eq=False)
class Route:
    """An arm on its way; a metric that takes all layers in one block sets out anew for each number of them."""

    arm: Arm
    metric: Metric
    in_turn: bool
    """Whether the calibration windows are run in shards whose states do not fit together, as blocks of layers are
    scored in little memory. Arms that agree in this share runs."""
    candidates: list[int]
    span: int
    stops: list[int]
    """After how many removals to measure, ascending; at the last one it ends."""
    removed: list[int] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    ranking: Ranking | None = None
    """One-shot: of the dense model, and its statistics beside it."""
    statistics: Statistics | None = None
    steps: set[Step] = field(default_factory=set)
    """All that it needed."""

    @property
    def going(self) -> bool:
        return len(self.removed) < self.stops[-1]

    @property
    def keeps_own(self) -> bool:
        """Whether its metric goes on with what it keeps beside the states of a run's shard, for as long as that shard
        is there."""
        return self.going and not self.arm.one_shot and self.metric.reads_states

    @property
    def needs_gram(self) -> bool:
        return self.metric.needs_gram(self.span, self.arm.parity)


@dataclass
class Runs:
    """A model over all windows that somebody asks about."""

    calibration: dict[bool, Run]
    """By :attr:`Route.in_turn`."""
    texts: dict[str, Run]

    def all(self) -> list[Run]:
        return [*self.calibration.values(), *self.texts.values()]

    @property
    def window_forwards(self) -> int:
        """Of all processes."""
        return sum(round(run.layer_forwards * run.windows.count) for run in self.all())

    def fork(self) -> Runs:
        return Runs(
            {in_turn: run.fork() for in_turn, run in self.calibration.items()},
            {name: run.fork() for name, run in self.texts.items()},
        )

    def restrict(self, routes: Sequence[Route]) -> None:
        """Let go of what none of the arms will ask for."""
        going = [route for route in routes if route.going]
        asked = dict.fromkeys(route.in_turn for route in going)
        self.calibration = {in_turn: self.calibration[in_turn] for in_turn in asked}
        for in_turn, run in self.calibration.items():
            scored = [route for route in going if route.in_turn == in_turn and not route.arm.one_shot]
            run.restrict(
                spans=any(route.needs_gram for route in scored), backward=any(route.metric.backward for route in scored)
            )
