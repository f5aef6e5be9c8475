"""From what is asked for to runs and routes: which windows and which memory each arm gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from prunecomp.compare.arms import Arm
from prunecomp.compare.memory import beside_states, branching_demand, share_out
from prunecomp.compare.routes import Route, Runs
from prunecomp.compare.steps import Fits
from prunecomp.compare.tree import Explorer
from prunecomp.compensation import COMPENSATIONS
from prunecomp.data.windows import Windows
from prunecomp.engine.parallel import world_size
from prunecomp.engine.placement import Placement
from prunecomp.engine.progress import Within
from prunecomp.engine.run import Run
from prunecomp.engine.states import set_apart
from prunecomp.engine.streams import BOUNDARIES, check_boundaries
from prunecomp.errors import CheckpointError, FoldError, OptionError
from prunecomp.evaluation.agreement import Standing
from prunecomp.evaluation.profile import Named, in_use
from prunecomp.evaluation.tasks import Results, TaskScore, beside_dense
from prunecomp.metrics import METRICS
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.options import PruneOptions
from prunecomp.pruning.language import check_speaks, language_of
from prunecomp.pruning.session import Session, candidates_of, may_replace
from prunecomp.repair import RIDGE, Outcome, check_placed, demand_of, repair


def options_of(common: PruneOptions, arm: Arm, layers: int) -> PruneOptions:
    """What :func:`prunecomp.prune` would be called with."""
    own: dict[str, Any] = asdict(arm)
    return replace(common, layers=layers, **own)


@contextmanager
def naming(arm: Arm) -> Iterator[None]:
    """Say in an error which arm it is about."""
    try:
        yield
    except (CheckpointError, FoldError, OptionError) as error:
        raise type(error)(f"{arm.name}: {error}") from error


def candidates_of_arm(common: PruneOptions, arm: Arm, layers: int, num_layers: int) -> list[int]:
    """The layers that an arm may remove. Raises :class:`OptionError` where they are too few."""
    with naming(arm):
        return candidates_of(options_of(common, arm, layers), num_layers)


def check_arms(common: PruneOptions, arms: Sequence[Arm]) -> None:
    """Raise :class:`OptionError` for names that are not known, and for arms that cannot be compared."""
    together = [options_of(common, arm, 1) for arm in arms]
    for arm, options in zip(arms, together, strict=True):
        with naming(arm):
            # Whether a ridge can act is a matter of the arm's own repair.
            beside = [replace(one, repair=options.repair, ridge=options.ridge) for one in together]
            options.check(METRICS, COMPENSATIONS, beside)
    if len({arm.parity for arm in arms}) > 1:
        raise OptionError("arms with and without --parity official run in different dtypes: compare them separately")


def replacing(session: Session, arm: Arm, layers: int) -> bool:
    """Whether an arm's repair may put new weights in place. Raises what :func:`prunecomp.prune` raises before any work
    for a fit that was asked for, and for any arm where tasks are, since seams are folded to ask; else, where it has
    none for ``auto``, no weights are replaced, since nothing is exported."""
    with naming(arm):
        options = options_of(session.options, arm, layers)
        try:
            return may_replace(session.model_source, options, candidates_of(options, session.model_source.num_layers))
        except (CheckpointError, FoldError):
            if arm.repair == "auto" and session.tasks is None:
                return False
            raise


@dataclass(frozen=True)
class Plan:
    """What is compared, on what. ``counts`` is after how many removals arms are measured, ascending; ``replaces`` says
    of arms that repair whether they may put new weights in place."""

    session: Session
    windows: Windows
    texts: dict[str, Windows]
    arms: list[Arm]
    counts: list[int]
    replaces: dict[Arm, bool]

    @property
    def common(self) -> PruneOptions:
        """What the arms have in common."""
        return self.session.options

    def candidates(self, arm: Arm) -> list[int]:
        """The layers that the arm may remove."""
        return candidates_of_arm(self.common, arm, self.counts[-1], self.session.model_source.num_layers)

    def place(self) -> Placement:
        """The placement of the whole, its room in boundaries of the calibration windows."""
        shape = self.session.model_source.shape()
        described = self.session.model_source.described
        demands = [route.metric.demand(shape, route.span) for route in self.routes(self.arms)]
        demands += [demand_of(described, shape, arm.repair) for arm in self.replaces]
        demand = branching_demand(
            demands, shape.num_layers, self.counts[-1], self.windows, list(self.texts.values()),
            runs=len({route.in_turn for route in self.routes(self.arms)}) + 1, apart=self.apart,
        )  # fmt: skip
        placement = self.session.place(self.windows.count, self.windows.seqlen, demand)
        if self.session.tasks is not None:
            check_speaks(f"--tasks {self.common.tasks}", self.session.model_source, placement)
        if self.apart:
            check_boundaries(placement, self.session.model_source.device)
        for arm in self.replaces:
            if arm.repair == "map":
                with naming(arm):
                    check_placed(placement)
        return placement

    @property
    def apart(self) -> int:
        """Boundaries of the calibration windows that are left to repairs, beside what the walk keeps."""
        return BOUNDARIES if self.replaces else 0

    def routes(self, arms: Sequence[Arm], *, in_turn: bool = False) -> list[Route]:
        """The arms at their start. ``in_turn``: those that score blocks do so in shards of the windows."""
        metrics = {arm.metric: METRICS[arm.metric]() for arm in arms}
        routes = []
        for arm in arms:
            metric = metrics[arm.metric]
            ways = [(count, [count]) for count in self.counts] if metric.one_block else [(1, self.counts)]
            for span, stops in ways:
                shards = in_turn and bool(metric.needs_gram(span, arm.parity))
                routes.append(Route(arm, metric, shards, self.candidates(arm), span, stops))
        return routes

    def explorer(
        self,
        arms: Sequence[Arm],
        decoder: Decoder,
        placement: Placement,
        on_measured: Callable[[Explorer], None],
    ) -> Explorer:
        """Ready to take ``arms`` from the dense model on."""
        of_fits, left = set_apart(placement.capacity, self.apart)
        fitting, placement = replace(placement, capacity=of_fits), replace(placement, capacity=left)

        tasks, first = self.session.tasks, list[Results]()
        language = None if tasks is None else language_of(self.session.model_source)

        def asked(stack: LayerStack) -> list[TaskScore]:
            """The first that is asked is the dense model."""
            if tasks is None or language is None:
                return []
            with in_use(Named("pruned", Standing(decoder, stack, placement))):
                results = tasks.ask(language)
            if not first:
                first.append(results)
            return beside_dense(first[0], results, self.common.seed)

        def repaired(arm: Arm, stack: LayerStack) -> tuple[LayerStack, Outcome]:
            return repair(
                decoder, self.windows, fitting, stack, arm.repair, arm.ridge or RIDGE, replaces=self.replaces[arm],
                progress=self.common.progress,
            )  # fmt: skip

        rooms, routes = self._shared(placement, self.routes(arms))
        if not rooms[0].kept_boundaries >= decoder.num_layers - 1:
            rooms, routes = self._shared(placement, self.routes(arms, in_turn=True))
        return Explorer(
            self._runs(decoder, routes, *rooms), routes, seed=self.common.seed, given=self.common.given,
            progress=cast(Within, self.common.progress), repair=repaired, fits=Fits(self.windows.count),
            ask=asked, on_measured=on_measured,
        )  # fmt: skip

    def _shared(self, placement: Placement, routes: list[Route]) -> tuple[tuple[Placement, Placement], list[Route]]:
        runs, source = len({route.in_turn for route in routes}), self.session.model_source
        texts = list(self.texts.values())
        shared = share_out(placement, source.num_layers, self.windows, texts, runs, world_size(), source.device)
        return shared, routes

    def _runs(self, decoder: Decoder, routes: Sequence[Route], placement: Placement, of_texts: Placement) -> Runs:
        """The dense model over all windows."""
        progress = self.common.progress
        candidates = sorted({layer for route in routes for layer in route.candidates})
        runs = Runs({}, {})
        for in_turn in dict.fromkeys(route.in_turn for route in routes):
            sharing = [route for route in routes if route.in_turn == in_turn]
            # Metrics that read states keep some of their own.
            own = any(route.metric.reads_states for route in sharing)
            room = beside_states(placement, decoder.num_layers) if own else placement
            runs.calibration[in_turn] = Run(
                decoder, self.windows, room, candidates=candidates, spans=any(route.needs_gram for route in sharing),
                along_tokens=any(route.metric.needs_cosines_along_tokens(route.arm.parity) for route in sharing),
                backward=any(route.metric.backward for route in sharing), backend=self.common.backend,
                progress=progress,
            )  # fmt: skip
        for name, windows in self.texts.items():
            runs.texts[name] = Run(decoder, windows, of_texts, candidates=candidates, measured=False, progress=progress)
        return runs

    def identity(self, placement: Placement, compiled: bool) -> dict[str, Any]:
        """All that the numbers depend on beside the arms and how many layers they remove."""
        of_arms = ("layers", "metric", "compensation", "one_shot", "parity", "repair", "ridge")
        identity = self.session.identity(self.windows, placement, compiled, left_out=(*of_arms, "fold", "device"))
        identity["options"]["dtype"] = str(self.session.model_source.dtype).removeprefix("torch.")
        tasks = self.session.tasks
        return {
            **identity,
            "texts": {name: windows.digest for name, windows in self.texts.items()},
            **({} if tasks is None else {"tasks": {**asdict(tasks), "names": list(tasks.names)}}),
        }
