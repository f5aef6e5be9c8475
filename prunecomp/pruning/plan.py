"""What a run would do, told before it does it: work, bytes, the bound that holds, and the peak of every tier."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prunecomp.compensation import COMPENSATIONS
from prunecomp.data.windows import check_context, choose_seqlen, context_of
from prunecomp.engine.placement import ModelShape, Placement, available_memory, model_shape, place, should_compile
from prunecomp.engine.rates import Rates, measure_rates
from prunecomp.engine.retention import choose_boundaries, expected_recomputation
from prunecomp.engine.states import Tier
from prunecomp.errors import OptionError
from prunecomp.io.escape import one_line
from prunecomp.io.values import folder_path, listed
from prunecomp.metrics import METRICS, check_order
from prunecomp.model.families import families
from prunecomp.model.files import INDEX, SINGLE
from prunecomp.model.loader import build_skeleton, choose_device, choose_dtype, read_config, resolve_model
from prunecomp.model.quantised import dequantised
from prunecomp.model.source import position_rows
from prunecomp.model.stored import under_model_names
from prunecomp.model.weights import StoredTensors, open_checkpoint
from prunecomp.options import PruneOptions
from prunecomp.pruning.pruner import choose_candidates


@dataclass(frozen=True)
class Work:
    """A stretch of a run."""

    layer_forwards: float
    flops: float
    weight_nbytes: float
    """Moved to the device; nothing where the weights stay there."""
    state_nbytes: dict[str, float]
    """Written to and read from each slower tier."""

    def times(self, factor: float) -> Work:
        return Work(
            self.layer_forwards * factor,
            self.flops * factor,
            self.weight_nbytes * factor,
            {tier: nbytes * factor for tier, nbytes in self.state_nbytes.items()},
        )

    def plus(self, other: Work) -> Work:
        return Work(
            self.layer_forwards + other.layer_forwards,
            self.flops + other.flops,
            self.weight_nbytes + other.weight_nbytes,
            {tier: nbytes + other.state_nbytes[tier] for tier, nbytes in self.state_nbytes.items()},
        )


@dataclass(frozen=True, repr=False)
class RunPlan:
    """Everything ``prunecomp plan`` prints."""

    model: str
    device: str
    dtype: str
    layers: int
    metric: str
    windows: int
    seqlen: int
    shape: ModelShape
    placement: Placement
    compiled: bool
    """Whether ``--compile auto`` would compile the layers."""
    adds: str
    """What the metric does in a round beside the pass, in words: it is not counted below."""
    first_round: Work
    later_round: Work
    """On average, if cuts fall anywhere with equal chance."""
    total: Work
    most_layer_forwards: int
    """If every cut were at the bottom."""
    rates: Rates
    seconds: dict[str, float]
    """Of the whole run, by resource; they overlap."""

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(self.seconds, key=lambda resource: self.seconds[resource])

    def __repr__(self) -> str:
        took = max(self.seconds.values())
        return f"RunPlan({one_line(self.model)}: {self.layers} layers off, about {took:.3g} s, bound by {self.bound})"

    def record(self) -> dict[str, Any]:
        """The plan as plain data that JSON can hold."""
        record = asdict(self)
        record["placement"]["disk_folder"] = (
            None if self.placement.disk_folder is None else str(self.placement.disk_folder)
        )
        return {**record, "bound": self.bound}


def plan(
    model: str | Path,
    layers: int,
    *,
    metric: str = "bi",
    span: int | None = None,
    samples: int = 128,
    seqlen: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_memory: int | None = None,
    host_memory: int | None = None,
    disk: str | Path | None = None,
) -> RunPlan:
    """Plan a run from a model's config alone; rates are measured on the machine, which takes about a second.

    The placement has room for what the ``metric`` takes, for blocks of ``span`` layers (by default as
    :func:`prunecomp.prune` has them); the work is that of its passes.
    """
    options = PruneOptions.of(
        layers=layers, metric=metric, span=span, samples=samples, seqlen=seqlen, dtype=dtype, device=device
    )
    if options.metric in METRICS and METRICS[options.metric].takes_order:  # which ones they are makes no difference
        options = replace(options, given=list(range(options.layers)))
    options.check(METRICS, COMPENSATIONS)
    folder = resolve_model(model, weights=False, dtype=options.dtype)
    config = read_config(folder)
    where, compute_dtype = choose_device(options.device), choose_dtype(options.dtype, config)
    skeleton: Any = build_skeleton(config, compute_dtype, checkpoint=_local_weights(model, config))
    shape = model_shape(skeleton, families.find(config.model_type), compute_dtype)
    candidates_of(options, shape.num_layers)
    seqlen = choose_seqlen(options.seqlen, config)
    check_context(seqlen, position_rows(config), context_of(config))
    states = None if disk is None else folder_path("--disk", disk)
    memory = available_memory(where, device_memory, host_memory, states)
    scorer = METRICS[metric]()
    layers, samples = options.layers, options.samples
    demand = scorer.demand(shape, options.block_size(METRICS))
    placement = place(shape, samples, seqlen, memory, where, demand=demand)
    first, later, total = rounds(shape, placement, samples, seqlen, layers)
    rates = measure_rates(where, compute_dtype, shape.hidden_size, folder, states)
    return RunPlan(
        model=str(model),
        device=str(where),
        dtype=str(compute_dtype).removeprefix("torch."),
        layers=layers,
        metric=metric,
        windows=samples,
        seqlen=seqlen,
        shape=shape,
        placement=placement,
        compiled=should_compile("auto", total.flops, where),
        adds=scorer.adds,
        first_round=first,
        later_round=later,
        total=total,
        most_layer_forwards=sum(shape.num_layers - done for done in range(layers)),
        rates=rates,
        seconds=seconds(total, rates),
    )


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
    chosen = choose_candidates(num_layers, options.layers, options.keep, options.candidates, barriers)
    if METRICS[options.metric].takes_order and not set(order[: options.layers]) <= set(chosen):
        barred = [layer for layer in order if layer not in chosen]
        raise OptionError(f"--given {listed(barred)}: must stay by --keep or --candidates; name other layers")
    return chosen


def _local_weights(model: str | Path, config: Any) -> StoredTensors | None:
    """Those of a local folder, to hold its config to; a config alone, or a pickle, is planned on trust."""
    folder = Path(model)
    if not folder.is_dir() or not any((folder / file).is_file() for file in (SINGLE, INDEX)):
        return None
    return under_model_names(dequantised(open_checkpoint(folder), config), families.find(config.model_type))


def rounds(shape: ModelShape, placement: Placement, windows: int, seqlen: int, layers: int) -> tuple[Work, Work, Work]:
    """The work of the first round, of a later one on average, and of all."""
    first = stretch(shape, placement, windows, seqlen, shape.num_layers)
    forwards = [expected_round(placement, shape.num_layers - done) for done in range(1, layers)]
    later = stretch(shape, placement, windows, seqlen, sum(forwards) / len(forwards) if forwards else 0.0)
    return first, later, first.plus(later.times(len(forwards)))


def expected_round(placement: Placement, alive: int) -> float:
    """Layer-forwards after a cut that is equally likely anywhere, with what the budget has to recompute below it."""
    odds = [1.0 / (alive + 1)] * (alive + 1)  # the cut leaves ``alive`` layers: it was before one of them or on top
    above = sum(chance * (alive - p) for p, chance in enumerate(odds))
    kept = choose_boundaries(odds, range(1, alive + 1), placement.kept_boundaries)
    return above + expected_recomputation(kept, odds)


def stretch(shape: ModelShape, placement: Placement, windows: int, seqlen: int, layer_forwards: float) -> Work:
    boundary = windows * seqlen * shape.hidden_size * shape.itemsize
    streamed = placement.group_size is not None
    states = {tier.value: 0.0 for tier in (Tier.host, Tier.disk)}
    for tier, count in placement.capacity.items():
        if tier is not Tier.device and shape.num_layers > 1:  # each kept boundary is written once as it is passed
            states[tier.value] += boundary * layer_forwards * count / (shape.num_layers - 1)
    if streamed and placement.carry is not Tier.device:  # written by one group, read by the next
        states[placement.carry.value] += 2 * boundary * layer_forwards
    return Work(
        layer_forwards,
        layer_forwards * shape.flops(windows * seqlen, seqlen),
        layer_forwards * shape.layer_nbytes if streamed else 0.0,
        states,
    )


def seconds(work: Work, rates: Rates) -> dict[str, float]:
    result = {"compute": work.flops / rates.flops}
    if rates.link is not None:
        result["host link"] = (work.weight_nbytes + work.state_nbytes[Tier.host.value]) / rates.link
    if rates.checkpoint is not None and work.weight_nbytes:
        result["reading weights"] = work.weight_nbytes / rates.checkpoint
    if rates.disk is not None:
        result["disk"] = work.state_nbytes[Tier.disk.value] / rates.disk
    return result
