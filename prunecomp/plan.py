"""What a run would do, told before it does it: work, bytes, the bound that holds, and the peak of every tier."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunecomp.data.windows import check_context, check_count, choose_seqlen, context_of
from prunecomp.engine.placement import ModelShape, Placement, available_memory, model_shape, place, should_compile
from prunecomp.engine.rates import Rates, measure_rates
from prunecomp.engine.retention import choose_boundaries, expected_recomputation
from prunecomp.engine.states import Tier
from prunecomp.errors import OptionError
from prunecomp.metrics import METRICS
from prunecomp.model.families import families
from prunecomp.model.loader import build_skeleton, choose_device, choose_dtype, read_config, resolve_model
from prunecomp.subject import position_rows


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


@dataclass(frozen=True)
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

    def record(self) -> dict[str, Any]:
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
    folder = resolve_model(model, weights=False)
    config = read_config(folder)
    where, compute_dtype = choose_device(device), choose_dtype(dtype, config)
    skeleton: Any = build_skeleton(config, compute_dtype)
    skeleton.tie_weights()
    shape = model_shape(skeleton, families.find(config.model_type), compute_dtype)
    if not 0 < layers < shape.num_layers:
        raise OptionError(f"--layers {layers}: the model has {shape.num_layers}; give 1 to {shape.num_layers - 1}")
    seqlen = choose_seqlen(seqlen, config)
    check_count("--samples", samples, 1)
    check_context(seqlen, position_rows(config), context_of(config))
    states = None if disk is None else Path(disk)
    memory = available_memory(where, device_memory, host_memory, states)
    scorer = METRICS[metric]()
    size = span or (layers if scorer.one_block else 1)
    placement = place(shape, samples, seqlen, memory, where, demand=scorer.demand(shape, size))
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
