"""The walk through a comparison: what arms have in common is one pruned model, and is looked at once.

Arms set out from the dense model together. At each model every metric that an arm asks for is scored once, every
compensation estimated once, every text measured once; arms that remove the same layers and leave the same seam go on
together, the others part. The walk is depth first. Where arms part, each branch goes on with a fork of the model's
runs, the last one with the runs themselves: states below a cut are shared, never copied. Arms that differ in their
repair alone never part: a repair is fitted beside the walk where its arm is measured, and let go of again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch

from prunecomp.compare.arms import Arm
from prunecomp.compare.results import ArmWork, Measurement
from prunecomp.compare.routes import Block, Ranking, Route, Runs
from prunecomp.compare.steps import Fits, Model, Step, StepCache
from prunecomp.compensation import COMPENSATIONS, Removal, Seam, put_in_place
from prunecomp.engine.progress import Advance, Within
from prunecomp.engine.run import Run
from prunecomp.errors import NumericalError, OptionError
from prunecomp.evaluation.agreement import LastStates, TextQuality, quality_of, seen
from prunecomp.evaluation.tasks import TaskScore
from prunecomp.metrics import Candidates
from prunecomp.model.stack import LayerStack
from prunecomp.pruning.rounds import NO_BLOCK, choose_block
from prunecomp.repair import RIDGE, Outcome

T = TypeVar("T")


@dataclass
class Node:
    """A model that the walk is at, or will come back to for another branch."""

    model: Model
    stack: LayerStack
    runs: Runs | None
    """None once the last branch is entered."""
    replaced: list[Step] = field(default_factory=list)
    """Seams that hold whole weights: forgotten when the model is done with."""


@dataclass(frozen=True)
class Move:
    """What an arm removes next."""

    route: Route
    ranking: Ranking
    block: Block
    seam: Seam
    step: Step


@dataclass(frozen=True)
class Measured:
    """A model by text, as a :class:`Measurement` has it."""

    perplexity: dict[str, float]
    losses: dict[str, list[float]]
    agreement: dict[str, dict[str, float | None]]
    repair: Outcome | None
    tasks: list[TaskScore]


class Explorer:
    """Takes all routes from the dense model to their ends.

    ``on_measured`` is called whenever a model's perplexities are in.
    """

    def __init__(
        self,
        runs: Runs,
        routes: Sequence[Route],
        *,
        seed: int,
        given: Sequence[int],
        progress: Within,
        repair: Callable[[Arm, LayerStack], tuple[LayerStack, Outcome]],
        fits: Fits,
        ask: Callable[[LayerStack], list[TaskScore]],
        on_measured: Callable[[Explorer], None],
    ) -> None:
        self._routes = list(routes)
        self._repair, self._fits, self._ask = repair, fits, ask
        self._seed, self._given = seed, given
        self._progress, self._on_measured = progress, on_measured
        self._advance: Advance = lambda steps: None
        self._replacements: dict[Step, int] = {}
        self._path: list[Node] = []
        stack = next(iter(runs.texts.values())).stack
        self._root = Node(Model(stack.alive, stack.seams), stack, runs)
        self.cache = StepCache()
        self.measurements: list[Measurement] = []
        self.dense: dict[str, float] = {}
        self.dense_losses: dict[str, list[float]] = {}
        self.dense_tasks: list[TaskScore] = []
        self._last: dict[str, LastStates] = {}

    def explore(self) -> None:
        with self._progress("comparing", sum(route.stops[-1] for route in self._routes), "layers") as self._advance:
            self._visit(self._root, self._routes)

    def work(self) -> list[ArmWork]:
        """What each arm has needed so far."""
        steps: dict[Arm, set[Step]] = {}
        for route in self._routes:
            steps.setdefault(route.arm, set()).update(route.steps)
        work = []
        for arm, some in steps.items():
            chosen = self.cache.cost(choosing(some))
            fitted = self.cache.cost(step for step in some if step.kind == "repair")
            work.append(
                ArmWork(
                    arm, chosen.layer_forwards, chosen.seconds, self.cache.cost(some).window_forwards,
                    fitted.layer_forwards, fitted.seconds,
                )
            )  # fmt: skip
        return work

    def _visit(self, node: Node, routes: Sequence[Route]) -> None:
        self._path.append(node)
        going = [route for route in routes if route.going]
        here = [route for route in routes if len(route.removed) in route.stops]
        costs = {route: self.cache.cost(choosing(route.steps)) for route in here}
        # Gradients take the place of kept states, so who asks for them comes last.
        moves = [self._next(node, route) for route in sorted(going, key=lambda route: route.metric.backward)]
        self._expect(node, moves)
        if node is self._root:
            dense = self._measure(node, routes, keep=bool(moves))
            self.dense, self.dense_losses, self.dense_tasks = dense.perplexity, dense.losses, dense.tasks
            self._on_measured(self)
        alike: dict[tuple[str, float | None], list[Route]] = {}
        for route in sorted(here, key=lambda route: route.arm.repair != "none"):  # states that are kept first
            alike.setdefault((route.arm.repair, route.arm.ridge), []).append(route)
        for those in alike.values():
            found = self._measure(node, those, keep=bool(moves) or len(alike) > 1)
            self.measurements.extend(
                Measurement(
                    route.arm, len(route.removed), list(route.removed), list(route.scales), found.perplexity,
                    costs[route].layer_forwards, costs[route].seconds, found.losses, found.agreement, found.repair,
                    found.tasks,
                )
                for route in those
            )  # fmt: skip
            self._on_measured(self)
        branches: dict[Model, list[Move]] = {}
        for move in sorted(moves, key=lambda move: self._routes.index(move.route)):
            branches.setdefault(self._successor(node, move)[0], []).append(move)
        # The last branch goes on with the node's own runs, and with what metrics keep beside them.
        order = sorted(branches.values(), key=lambda together: any(move.route.keeps_own for move in together))
        for number, together in enumerate(order, start=1):
            self._visit(*self._branch(node, together, last=number == len(order)))
        self.cache.release(node.replaced)
        self._path.pop()

    def _branch(self, node: Node, moves: Sequence[Move], *, last: bool) -> tuple[Node, list[Route]]:
        """The model after a removal, and the arms that go on from there."""
        first, routes = moves[0], [move.route for move in moves]
        for move in moves:
            move.route.removed.extend(move.block)
            move.route.scales.append(move.seam.scale)
            self._advance(len(move.block))
        assert node.runs is not None
        runs = node.runs if last else node.runs.fork()
        if last:
            node.runs = None
        elif any(route.keeps_own for route in routes):
            node.runs = node.runs.fork()  # what a metric keeps beside a shard goes with it: there is room for one only
        runs.restrict(routes)
        for run in runs.all():
            put_in_place(run, first.block, first.seam)
        return Node(*self._successor(node, first), runs), routes

    def _next(self, node: Node, route: Route) -> Move:
        """What the arm removes from here, as :func:`prunecomp.pruning.rounds.run_rounds` decides it."""
        self._progress.place = f"{route.arm.name}, {len(route.removed)} of {route.stops[-1]} gone"
        try:
            most, block = route.stops[-1] - len(route.removed), None
            free = set(route.candidates) & set(node.stack.alive)
            while block is None:  # where the layers that are left lie apart, shorter blocks are tried
                ranking = route.ranking or self._rank(node, route, min(route.span, most))
                block = choose_block(ranking.scores, ranking.blocks, free)
                most -= 1
                if block is None and (route.arm.one_shot or most == 0):
                    raise OptionError(NO_BLOCK)
            return self._move(node, route, ranking, block)
        except (NumericalError, OptionError) as error:
            raise type(error)(f"{route.arm.name}: {error}") from error

    def _rank(self, node: Node, route: Route, span: int) -> Ranking:
        step = Step("score", node.model, route.in_turn, (route.arm.metric, route.arm.parity, span))
        if step not in self.cache or route.arm.one_shot:
            self._update(node, route)
        route.steps.add(Step("update", node.model, route.in_turn))
        ranking = self._once(node, route, step, lambda: self._scored(node, route, span))
        if route.arm.one_shot:
            route.ranking, route.statistics = ranking, calibration(node, route).statistics
        return ranking

    def _scored(self, node: Node, route: Route, span: int) -> Ranking:
        candidates = Candidates(
            run=self._spared(node, route), layers=[i for i in route.candidates if i in node.stack.alive], span=span,
            seed=self._seed, given=self._given, parity=route.arm.parity,
        )  # fmt: skip
        for shard in candidates.run.shards:
            route.metric.observe(candidates, shard)
        scores = route.metric.score(candidates)
        return Ranking(scores, {first: candidates.block(first) for first in scores})

    def _spared(self, node: Node, route: Route) -> Run:
        """The run to score on. Where gradients are asked for it gives up states, so it is a fork if that has room for
        what it needs, and else the run itself, once the models below it have given up theirs."""
        run = calibration(node, route)
        if not route.metric.backward:
            return run
        alive = node.stack.alive
        lowest = min((p for p, layer in enumerate(alive) if layer in route.candidates), default=0)
        wanted = set(alive[max(lowest, 1) :])
        if all(shard.states.room and wanted <= shard.states.kept for shard in run.shards):
            return run.trial()
        for earlier in self._path[:-1]:
            if earlier.runs is not None and route.in_turn in earlier.runs.calibration:
                earlier.runs.calibration[route.in_turn].release()
        return run

    def _move(self, node: Node, route: Route, ranking: Ranking, block: Block) -> Move:
        source = self._root.model if route.arm.one_shot else node.model
        step = Step("seam", node.model, route.in_turn, (block, route.arm.compensation, source))
        if step not in self.cache and not route.arm.one_shot:
            self._update(node, route)

        def estimated() -> Seam:
            assert node.runs is not None
            run = calibration(node, route)
            statistics = route.statistics if route.statistics is not None else run.statistics
            seam = COMPENSATIONS[route.arm.compensation](Removal(run, block, statistics))
            if seam.overlays:
                node.replaced.append(step)
            return seam

        return Move(route, ranking, block, self._once(node, route, step, estimated), step)

    def _update(self, node: Node, route: Route) -> None:
        """Have the model's statistics up to date."""
        assert node.runs is not None
        run = calibration(node, route)
        with self.cache.charged(Step("update", node.model, route.in_turn), node.runs, run):
            for shard in run.shards:
                run.update(shard)
        run.release_carry()

    def _measure(self, node: Node, routes: Sequence[Route], *, keep: bool) -> Measured:
        """The model on every text, with the repair that all of ``routes`` have."""
        assert node.runs is not None
        first, model, outcome = routes[0], node.model, None
        way: tuple[Any, ...] = ()
        stacks: list[LayerStack] | None = None
        place = f"{first.arm.name}, {len(first.removed)} gone" if first.removed else "dense"
        values = {}
        self._progress.place = place
        try:
            if first.removed and first.arm.repair != "none":
                way, stacks = (first.arm.repair, first.arm.ridge or RIDGE), []
                if first.arm.repair != "auto":  # which compares what the loop left; a fit does without
                    model = model.bare
                step = Step("repair", model, what=way)
                for route in routes:
                    route.steps.add(step)
                fit = partial(self._fit, first.arm, node.stack, stacks)
                outcome = self.cache.once(step, fit, self._fits, self._fits)
            for name, run in node.runs.texts.items():
                step = Step("loss", model, what=(name, *way))
                self._progress.place = f"{place}: {name}"
                for route in routes:
                    values[name] = self._once(node, route, step, partial(self._judged, name, run, stacks, keep))
                run.release_carry()
            self._progress.place = f"{place}: tasks"
            ask = partial(self._ask, stacks[0] if stacks else node.stack)
            tasks = self.cache.once(asking(node.model, outcome), ask, node.runs)
        except NumericalError as error:
            where = f"{first.arm.name}, {len(first.removed)} layers removed" if first.removed else "the model as it is"
            raise NumericalError(f"{where}: {error}") from error
        return Measured(
            {name: one.perplexity.value for name, (one, _) in values.items()},
            {name: by_window for name, (_, by_window) in values.items()},
            {name: one.agreement.figures() for name, (one, _) in values.items() if one.agreement is not None},
            outcome,
            tasks,
        )

    def _fit(self, arm: Arm, stack: LayerStack, stacks: list[LayerStack]) -> Outcome:
        """What a repair did; the repaired stack is left in ``stacks``, to be gone once it is measured."""
        repaired, outcome = self._repair(arm, stack)
        stacks.append(repaired)
        self._fits.layer_forwards += outcome.layer_forwards
        return outcome

    def _judged(
        self, name: str, run: Run, stacks: list[LayerStack] | None, keep: bool
    ) -> tuple[TextQuality, list[float]]:
        """The dense model comes first, and leaves its last states here, if there is room for them. ``stacks`` has the
        repaired one, if that is looked at: it keeps no states."""
        if stacks is not None:
            run, keep = run.trial(), False
            run.turn_to(*stacks)
        room, dense = run.placement.kept_boundaries > 0, name not in self._last
        kept = self._last.setdefault(name, LastStates(run, run.placement))
        look = (kept.hold if dense else kept.compare) if room else kept.alone
        sums = [seen(run, shard, look, keep=keep) for shard in run.shards]
        by_window = (torch.cat(sums)[:, 0] / run.windows.predicted).tolist()
        return quality_of(run.windows, torch.cat(sums), room and not dense), by_window

    def _expect(self, node: Node, moves: Sequence[Move]) -> None:
        """Have states be kept with an eye to what goes next, and then to the best of the arms' rankings."""
        assert node.runs is not None
        ranks: dict[int, float] = {}
        for move in moves:
            scores = move.ranking.scores
            for rank, layer in enumerate(sorted(scores, key=lambda layer: (scores[layer], layer))):
                ranks[layer] = min(rank, ranks.get(layer, rank))
        ranks |= {move.block[0]: -1.0 for move in moves}
        for run in node.runs.all():
            run.scores = dict(ranks)

    def _once(self, node: Node, route: Route, step: Step, work: Callable[[], T]) -> T:
        """What ``work`` gives, done by the first arm that asks for the step and needed by all of them."""
        assert node.runs is not None
        route.steps.add(step)
        run = None if step.in_turn is None else calibration(node, route)
        return self.cache.once(step, work, node.runs, run)

    def _successor(self, node: Node, move: Move) -> tuple[Model, LayerStack]:
        """The model that a move leads to."""
        stack = node.stack
        for layer, overlay in move.seam.overlays.items():
            stack = stack.with_overlay(layer, overlay)
        stack = stack.remove_block(move.block, move.seam.scale)
        number = node.model.replacement if stack.overlays else 0
        if move.seam.overlays:
            number = self._replacements.setdefault(move.step, len(self._replacements) + 1)
        return Model(stack.alive, stack.seams, number), stack


def asking(model: Model, outcome: Outcome | None) -> Step:
    """The same for models that are the same once they are repaired."""
    taken = "loop" if outcome is None else outcome.taken
    # A repair does without what the loop left.
    return Step("tasks", model if taken == "loop" else model.bare, what=() if taken in ("loop", "none") else (taken,))


def choosing(steps: Iterable[Step]) -> list[Step]:
    """What was done to prune, and not to repair or measure."""
    return [step for step in steps if step.kind not in ("loss", "repair", "tasks")]


def calibration(node: Node, route: Route) -> Run:
    assert node.runs is not None
    return node.runs.calibration[route.in_turn]
