"""The walk through a comparison: what arms have in common is one pruned model, and is looked at once.

Arms set out from the dense model together. At each model every metric that an arm asks for is scored once, every
compensation estimated once, every text measured once; arms that remove the same layers and leave the same seam go on
together, the others part. The walk is depth first. Where arms part, each branch goes on with a fork of the model's
runs, the last one with the runs themselves: states below a cut are shared, never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from prunecomp.compare.arms import Arm
from prunecomp.compare.ledger import Ledger, Model, Step
from prunecomp.compare.legs import Block, Leg, Ranking, Runs
from prunecomp.compare.results import ArmWork, Measurement
from prunecomp.compensation import COMPENSATIONS, Cut, Seam, put_in_place
from prunecomp.engine.progress import Advance, Progress
from prunecomp.engine.run import Run
from prunecomp.errors import NumericalError, OptionError
from prunecomp.evaluation.perplexity import to_perplexity
from prunecomp.metrics import Evidence
from prunecomp.model.stack import LayerStack
from prunecomp.pruner import NO_BLOCK, choose_block

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

    leg: Leg
    ranking: Ranking
    block: Block
    seam: Seam
    step: Step


class Explorer:
    """Takes all legs from the dense model to their ends.

    ``on_measured`` is called whenever a model's perplexities are in.
    """

    def __init__(
        self,
        runs: Runs,
        legs: Sequence[Leg],
        *,
        seed: int,
        given: Sequence[int],
        progress: Progress,
        on_measured: Callable[[Explorer], None],
    ) -> None:
        self._legs = list(legs)
        self._seed, self._given = seed, given
        self._progress, self._on_measured = progress, on_measured
        self._advance: Advance = lambda steps: None
        self._replacements: dict[Step, int] = {}
        self._path: list[Node] = []
        stack = next(iter(runs.texts.values())).stack
        self._root = Node(Model(stack.alive, stack.seams), stack, runs)
        self.ledger = Ledger()
        self.measurements: list[Measurement] = []
        self.dense: dict[str, float] = {}

    def explore(self) -> None:
        with self._progress("comparing", sum(leg.stops[-1] for leg in self._legs), "layers") as self._advance:
            self._visit(self._root, self._legs)

    def work(self) -> list[ArmWork]:
        """What each arm has needed so far."""
        steps: dict[Arm, set[Step]] = {}
        for leg in self._legs:
            steps.setdefault(leg.arm, set()).update(leg.steps)
        work = []
        for arm, some in steps.items():
            chosen = self.ledger.cost(choosing(some))
            work.append(ArmWork(arm, chosen.layer_forwards, chosen.seconds, self.ledger.cost(some).window_forwards))
        return work

    def _visit(self, node: Node, legs: Sequence[Leg]) -> None:
        self._path.append(node)
        going = [leg for leg in legs if leg.going]
        here = [leg for leg in legs if len(leg.removed) in leg.stops]
        costs = [self.ledger.cost(choosing(leg.steps)) for leg in here]
        # Gradients take the place of kept states, so who asks for them comes last.
        moves = [self._next(node, leg) for leg in sorted(going, key=lambda leg: leg.metric.backward)]
        self._expect(node, moves)
        if here or node is self._root:
            values = self._measure(node, legs if node is self._root else here, keep=bool(moves))
            for leg, cost in zip(here, costs, strict=True):
                self.measurements.append(
                    Measurement(
                        leg.arm, len(leg.removed), list(leg.removed), list(leg.scales), values,
                        cost.layer_forwards, cost.seconds,
                    )
                )  # fmt: skip
            if node is self._root:
                self.dense = values
            self._on_measured(self)
        branches: dict[Model, list[Move]] = {}
        for move in sorted(moves, key=lambda move: self._legs.index(move.leg)):
            branches.setdefault(self._successor(node, move)[0], []).append(move)
        # The last branch goes on with the node's own runs, and with what metrics keep beside them.
        order = sorted(branches.values(), key=lambda together: any(move.leg.keeps_own for move in together))
        for number, together in enumerate(order, start=1):
            self._visit(*self._branch(node, together, last=number == len(order)))
        self.ledger.forget(node.replaced)
        self._path.pop()

    def _branch(self, node: Node, moves: Sequence[Move], *, last: bool) -> tuple[Node, list[Leg]]:
        """The model after a removal, and the arms that go on from there."""
        first, legs = moves[0], [move.leg for move in moves]
        for move in moves:
            move.leg.removed.extend(move.block)
            move.leg.scales.append(move.seam.scale)
            self._advance(len(move.block))
        assert node.runs is not None
        runs = node.runs if last else node.runs.fork()
        if last:
            node.runs = None
        elif any(leg.keeps_own for leg in legs):
            node.runs = node.runs.fork()  # what a metric keeps beside a part goes with it: there is room for one only
        runs.narrow(legs)
        for run in runs.all():
            put_in_place(run, first.block, first.seam)
        return Node(*self._successor(node, first), runs), legs

    def _next(self, node: Node, leg: Leg) -> Move:
        """What the arm removes from here, as :func:`prunecomp.pruner.run_rounds` decides it."""
        try:
            most, block = leg.stops[-1] - len(leg.removed), None
            free = set(leg.candidates) & set(node.stack.alive)
            while block is None:  # where the layers that are left lie apart, shorter blocks are tried
                ranking = leg.ranking or self._rank(node, leg, min(leg.span, most))
                block = choose_block(ranking.scores, ranking.blocks, free)
                most -= 1
                if block is None and (leg.arm.one_shot or most == 0):
                    raise OptionError(NO_BLOCK)
            return self._move(node, leg, ranking, block)
        except (NumericalError, OptionError) as error:
            raise type(error)(f"{leg.arm.name}: {error}") from error

    def _rank(self, node: Node, leg: Leg, span: int) -> Ranking:
        step = Step("score", node.model, leg.arrangement, (leg.arm.metric, leg.arm.parity, span))
        if step not in self.ledger or leg.arm.one_shot:
            self._bring(node, leg)
        leg.steps.add(Step("bring", node.model, leg.arrangement))
        ranking = self._once(node, leg, step, lambda: self._scored(node, leg, span))
        if leg.arm.one_shot:
            leg.ranking, leg.statistics = ranking, calibration(node, leg).statistics
        return ranking

    def _scored(self, node: Node, leg: Leg, span: int) -> Ranking:
        evidence = Evidence(
            run=self._spared(node, leg), candidates=[i for i in leg.candidates if i in node.stack.alive], span=span,
            seed=self._seed, given=self._given, parity=leg.arm.parity,
        )  # fmt: skip
        for part in evidence.run.parts:
            leg.metric.observe(evidence, part)
        scores = leg.metric.score(evidence)
        return Ranking(scores, {first: evidence.block(first) for first in scores})

    def _spared(self, node: Node, leg: Leg) -> Run:
        """The run to score on. Where gradients are asked for it gives up states, so it is a fork if that has room for
        what it needs, and else the run itself, once the models below it have given up theirs."""
        run = calibration(node, leg)
        if not leg.metric.backward:
            return run
        alive = node.stack.alive
        lowest = min((p for p, layer in enumerate(alive) if layer in leg.candidates), default=0)
        wanted = set(alive[max(lowest, 1) :])
        if all(part.states.room and wanted <= part.states.kept for part in run.parts):
            return run.trial()
        for earlier in self._path[:-1]:
            if earlier.runs is not None and leg.arrangement in earlier.runs.calibration:
                earlier.runs.calibration[leg.arrangement].forget()
        return run

    def _move(self, node: Node, leg: Leg, ranking: Ranking, block: Block) -> Move:
        source = self._root.model if leg.arm.one_shot else node.model
        step = Step("seam", node.model, leg.arrangement, (block, leg.arm.compensation, source))
        if step not in self.ledger and not leg.arm.one_shot:
            self._bring(node, leg)

        def estimated() -> Seam:
            assert node.runs is not None
            run = calibration(node, leg)
            held_out = node.runs.held_out if leg.arrangement.holds_out else None
            statistics = leg.statistics if leg.statistics is not None else run.statistics
            seam = COMPENSATIONS[leg.arm.compensation](Cut(run, block, statistics, held_out))
            if seam.overlays:
                node.replaced.append(step)
            return seam

        return Move(leg, ranking, block, self._once(node, leg, step, estimated), step)

    def _bring(self, node: Node, leg: Leg) -> None:
        """Have the model's statistics up to date."""
        assert node.runs is not None
        run = calibration(node, leg)
        with self.ledger.charged(Step("bring", node.model, leg.arrangement), node.runs, run):
            for part in run.parts:
                run.bring(part)
        run.rest()

    def _measure(self, node: Node, legs: Sequence[Leg], *, keep: bool) -> dict[str, float]:
        """Perplexity of the model on every text."""
        assert node.runs is not None
        values = {}
        for name, run in node.runs.texts.items():
            step = Step("loss", node.model, what=(name,))
            try:
                for leg in legs:
                    loss = self._once(node, leg, step, partial(run.loss, keep=keep))
            except NumericalError as error:
                where = f"{leg.arm.name}, {len(leg.removed)} layers removed" if leg.removed else "the model as it is"
                raise NumericalError(f"{where}: {error}") from error
            run.rest()
            values[name] = to_perplexity(loss)
        return values

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

    def _once(self, node: Node, leg: Leg, step: Step, work: Callable[[], T]) -> T:
        """What ``work`` gives, done by the first arm that asks for the step and needed by all of them."""
        assert node.runs is not None
        leg.steps.add(step)
        run = None if step.arrangement is None else calibration(node, leg)
        return self.ledger.once(step, work, node.runs, run)

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


def choosing(steps: Iterable[Step]) -> list[Step]:
    """What was done to prune, and not to measure."""
    return [step for step in steps if step.kind != "loss"]


def calibration(node: Node, leg: Leg) -> Run:
    assert node.runs is not None
    return node.runs.calibration[leg.arrangement]
