"""A model that is open for a run, and what every run does with it: drawing windows, placing, loading."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from prunecomp.checkpoint.export import check_export
from prunecomp.checkpoint.numbers import check_layers_move
from prunecomp.compensation import COMPENSATIONS
from prunecomp.data.windows import Windows
from prunecomp.engine.latency import Latency, assumed
from prunecomp.engine.parallel import Workers, least, processes_here, world_size
from prunecomp.engine.placement import Demand, Memory, Placement, available_memory, place, should_compile
from prunecomp.engine.progress import Progress
from prunecomp.engine.streams import BOUNDARIES, check_boundaries
from prunecomp.engine.work import rounds as rounds_of_work
from prunecomp.errors import FoldError, OptionError
from prunecomp.evaluation.agreement import compares
from prunecomp.evaluation.tasks import Tasks
from prunecomp.io.values import at_revision, listed
from prunecomp.metrics import METRICS, check_order
from prunecomp.model.decoder import Decoder
from prunecomp.model.loader import DTYPES, choose_attention, choose_device
from prunecomp.model.source import ModelSource, open_source
from prunecomp.ops.backends import choose
from prunecomp.options import PruneOptions
from prunecomp.options.targets import Share
from prunecomp.pruning.gates import most_rounds
from prunecomp.pruning.inputs import calibration_windows, evaluation_windows
from prunecomp.pruning.pruner import Pruner
from prunecomp.pruning.result import Origin
from prunecomp.pruning.rounds import choose_candidates
from prunecomp.repair import check_placed, check_repairable, demand_of


class Session:
    """``model`` as ``options`` would have it run: opened and checked, with no weights loaded before :meth:`load`.

    Raises :class:`OptionError` for what is no model, and for options of loading that ask of a model in memory what it
    is not; :class:`prunecomp.errors.CheckpointError` for a model that cannot be read.
    """

    def __init__(self, model: Any, options: PruneOptions) -> None:
        self.model_source = _opened(model, options)
        self.options = options.aimed(self.model_source.num_layers)
        self.latency: Latency | None = None
        """Of the layers, where a target is to reach one: assumed, until :meth:`take` is given what was measured."""
        if options.target:
            timed = any(aim.name == "latency" for aim in options.target)
            self.take(assumed(self.model_source.described) if timed else None)
        if options.pending:
            self.options.check(METRICS, COMPENSATIONS)

    @cached_property
    def tasks(self) -> Tasks | None:
        """What lm-eval is to ask, made ready. Raises as :meth:`Tasks.of` does."""
        options = self.options
        return None if options.tasks is None else Tasks.of(options.tasks, options.fewshot, options.limit)

    def take(self, latency: Latency | None) -> None:
        """With ``latency``, ``options.layers`` are how many layers go at most until the target is reached, in whole
        blocks. Raises :class:`OptionError` where it cannot be."""
        self.latency = latency
        options, metric = self.options, METRICS[self.options.metric]
        chosen = candidates_of(replace(options, layers=1), self.model_source.num_layers)
        most = min(len(chosen) - (options.candidates is None), self.model_source.num_layers - 1)
        if metric.takes_order:
            most = min(most, len(options.given))
        size = options.span or 1
        needed = most_rounds(options.target or [], self.model_source, chosen, most, latency)
        self.options = replace(options, layers=min(-(-needed // size), max(most // size, 1)) * size)

    def candidates(self) -> list[int]:
        """The layers that may go."""
        return candidates_of(self.options, self.model_source.num_layers)

    def calibration(self, *, as_asked: Collection[str] = ("samples", "seqlen")) -> Windows:
        """The calibration windows: of one length, cut from the whole text, or documents one by one.

        Windows that come as such must be those that were asked for, by the options named ``as_asked``.
        """
        options = self.options
        windows = calibration_windows(
            self.model_source, options.calibration, options.samples, options.seqlen, options.seed, options.documents,
            options.window_bos,
        )  # fmt: skip
        self._check_taken(windows, as_asked)
        Workers.current(windows.count)  # too few for the processes is told before any work
        return windows

    def evaluation(self, source: Any, *, as_asked: Collection[str] = ()) -> Windows:
        """Consecutive windows of a text to measure perplexity on."""
        windows = evaluation_windows(self.model_source, source, self.options.seqlen, self.options.window_bos)
        self._check_taken(windows, as_asked)
        Workers.current(windows.count)
        return windows

    def _check_taken(self, windows: Windows, as_asked: Collection[str]) -> None:
        """Raise :class:`OptionError` where windows that came as such are not those that were asked for."""
        options = self.options
        if windows.drawn:
            return
        for name, value, made, default in (
            ("samples", options.samples, windows.count, PruneOptions.samples),
            ("seqlen", options.seqlen, windows.seqlen, None),
        ):
            if name in as_asked and value not in (default, made):
                raise OptionError(
                    f"--{name} {value}: {windows.source} is windows already, {windows.count} of {windows.seqlen} "
                    f"tokens, and is taken as it stands; leave out --{name}"
                )

    def demand(self) -> Demand:
        """The memory that the metric, and then the repair, takes beside the pass; and where a second model is looked
        at after each round, its states."""
        models = 2 if self.options.on_text else 1
        shape, repair = self.model_source.shape(), self.options.repair
        metric = METRICS[self.options.metric]().demand(shape, self.options.block_size(METRICS))
        metric = replace(metric, boundaries=metric.boundaries + (models - 1) * (shape.num_layers + BOUNDARIES))
        if repair == "none":
            return metric
        return metric.beside(
            demand_of(self.model_source.described, shape, repair, max(models, len(self.options.curve or [])))
        )

    def place(self, count: int, seqlen: int, demand: Demand | None = None) -> Placement:
        """The placement of a run over so many windows, within the limits of the options; no weights are loaded."""
        options, model_source = self.options, self.model_source
        memory = available_memory(
            model_source.device, options.device_memory, options.host_memory, options.disk, processes=processes_here()
        )
        # Every process must come to the same placement.
        on_device, on_host, on_disk = least(memory.device, memory.host, memory.disk)
        placed = partial(
            place, model_source.shape(), count, seqlen, Memory(on_device, on_host, on_disk, memory.disk_folder),
            model_source.device, resident=model_source.resident, processes=world_size(),
        )  # fmt: skip
        try:
            placement = placed(demand=demand)
        except OptionError as error:
            if options.repair != "none" and placed() is not None:  # raises where it is not for what the repair takes
                raise OptionError(f"{error}; or use --repair none, which needs less") from None
            raise
        if options.repair != "none" and demand is not None:
            check_boundaries(placement, model_source.device)
            if options.repair == "map":
                check_placed(placement)
        compared = [aim for aim in options.on_text if aim.name != "perplexity"]
        if compared and not compares(placement):
            raise OptionError(
                f"--target {compared[0]}: memory has no room for the dense model's last states; give more "
                "--device-memory, or a shorter --eval"
            )
        return placement

    def compiles(self, windows: Windows, placement: Placement, rounds: int = 1) -> bool:
        """Whether the layers are compiled, for a run of so many rounds."""
        work = rounds_of_work(self.model_source.shape(), placement, windows.count, windows.seqlen, rounds)
        return should_compile(self.options.compile, work[-1].flops, self.model_source.device)

    def load(self, placement: Placement, *, compiled: bool = False) -> Decoder:
        """The decoder, its weights where the placement has them."""
        decoder = self.model_source.load(placement.group_size)
        if compiled:
            decoder.compile()
        return decoder

    def pruner(
        self,
        windows: Windows,
        placement: Placement,
        *,
        compiled: bool = False,
        candidates: Sequence[int] | None = None,
        moving: Sequence[int] = (),
        origin: Origin | None = None,
        progress: Progress | None = None,
    ) -> Pruner:
        """The pruner that the options ask for, over ``windows``: in a random order, drawn from the seed, where a round
        may end early. A few rows are run first, to see that the layers ``moving`` can go."""
        options, decoder = self.options, self.load(placement, compiled=compiled)
        if moving:
            check_layers_move(decoder, moving, windows.tokens[0])
        return Pruner(
            decoder, windows if options.confidence is None else windows.shuffled(options.seed),
            metric=options.metric, compensation=options.compensation, cache=options.cache,
            placement=placement, candidates=candidates, seed=options.seed, given=options.given,
            span=options.block_size(METRICS), lookahead=options.lookahead, confidence=options.confidence,
            parity=options.parity, backend=options.backend, progress=progress or options.progress, origin=origin,
        )  # fmt: skip

    def identity(
        self, windows: Windows, placement: Placement, compiled: bool, left_out: Collection[str]
    ) -> dict[str, Any]:
        """All that choices and numbers depend on: model, data, how they are run, and the options but those
        ``left_out``."""
        options, model_source = self.options, self.model_source
        decisive = {name: value for name, value in options.record().items() if name not in left_out}
        decisive["attn"] = choose_attention(options.attn, model_source.config, model_source.device, model_source.dtype)
        decisive["backend"] = choose(
            "layer_stats", model_source.device.type, model_source.dtype, options.backend
        ).backend
        return {
            "model": model_source.fingerprint(),
            "calibration": windows.digest,
            "micro_batch": placement.micro_batch,
            "dtype": str(model_source.dtype),
            "compiled": compiled,
            "device_type": model_source.device.type,
            "options": decisive,
        }


def candidates_of(options: PruneOptions, num_layers: int) -> list[int]:
    """The layers that a run may remove from a model of so many. Raises :class:`OptionError` where they are too few, or
    where an order names fewer than go, or one that must stay."""
    barriers = METRICS[options.metric]().barriers(num_layers)
    if METRICS[options.metric].takes_order:
        order = check_order(options.given, num_layers)
        if len(order) < options.layers:
            raise OptionError(
                f"--given {listed(order)} names {len(order)} layers, and --layers {options.layers} are to go: give as "
                "many"
            )
    assert not isinstance(options.keep, Share)
    chosen = choose_candidates(num_layers, options.layers, options.keep, options.candidates, barriers)
    if METRICS[options.metric].takes_order and not set(order[: options.layers]) <= set(chosen):
        barred = [layer for layer in order if layer not in chosen]
        raise OptionError(f"--given {listed(barred)}: must stay by --keep or --candidates; name other layers")
    return chosen


def may_replace(model_source: ModelSource, options: PruneOptions, candidates: Collection[int]) -> bool:
    """Whether a repair may put new weights in place. Raises what is known before any work to have no export, or nothing
    to fit; ``auto`` then does without new weights."""
    fold = None if options.compensation == "none" and options.repair == "none" else options.fold
    asked = bool(getattr(COMPENSATIONS[options.compensation], "replaces_weights", False))
    if options.repair == "auto":
        try:
            check_export(model_source, candidates, fold, True)
        except FoldError:
            check_export(model_source, candidates, fold, asked)
            return False
        return True
    check_export(model_source, candidates, fold, asked or options.repair != "none")
    check_repairable(model_source.described, options.repair)
    return options.repair != "none"


def _opened(model: Any, options: PruneOptions) -> ModelSource:
    if isinstance(model, ModelSource):
        return model
    in_memory = not isinstance(model, str | Path)
    choose_device(options.device)
    if not in_memory and options.tokenizer is not None:
        raise OptionError("tokenizer: a model folder brings its own; leave it out")
    model_source = open_source(
        at_revision(model, options.revision), dtype=options.compute_dtype, device=options.device,
        tokenizer=options.tokenizer, allow_pickle=options.allow_pickle, attention=options.attn,
    )  # fmt: skip
    if in_memory:
        _check_as_it_is(model_source, options)
    return model_source


def _check_as_it_is(model_source: ModelSource, options: PruneOptions) -> None:
    """A model in memory is used where it is and as it is."""
    place = model_source.device
    wanted = place if options.device == "auto" else choose_device(options.device)
    attention = getattr(model_source.config, "_attn_implementation", None)
    for option, value, is_so, being in (
        ("--dtype", options.dtype, DTYPES.get(options.dtype) == model_source.dtype, model_source.dtype),
        ("--device", options.device, wanted.type == place.type and wanted.index in (None, place.index), place),
        ("--attn", options.attn, options.attn == attention, attention),
    ):
        if value != "auto" and not is_so:
            raise OptionError(
                f"{option} {value}: a model in memory is used as it is, and this one has {being}; leave it out, or "
                "give the model's folder"
            )
