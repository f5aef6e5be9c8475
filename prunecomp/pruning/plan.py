"""What a run would do, told before it does it: work, bytes, the bound that holds, and the peak of every tier."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from prunecomp.compensation import COMPENSATIONS
from prunecomp.engine.placement import ModelShape, Placement, should_compile
from prunecomp.engine.rates import Rates, measure_rates
from prunecomp.engine.usual import usual
from prunecomp.engine.work import Work, rounds, seconds, stretch
from prunecomp.io.escape import one_line
from prunecomp.io.values import at_revision
from prunecomp.metrics import METRICS
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families
from prunecomp.model.files import INDEX, SINGLE
from prunecomp.model.loader import build_skeleton, choose_device, choose_dtype, read_config, resolve_model
from prunecomp.model.quantised import dequantised
from prunecomp.model.source import ModelSource
from prunecomp.model.stored import under_model_names
from prunecomp.model.weights import StoredTensors, open_checkpoint
from prunecomp.options import PruneOptions
from prunecomp.options.keywords import PlanKeywords
from prunecomp.pruning.inputs import window_length
from prunecomp.pruning.session import Session
from prunecomp.repair import most_layer_forwards
from prunecomp.repair.judge import STRETCHES


@dataclass(frozen=True, repr=False)
class RunPlan:
    """Everything ``prunecomp plan`` prints."""

    model: str
    device: str
    dtype: str
    layers: int
    """That go, at most where there is a ``target``."""
    target: list[str]
    """Each of its limits is looked at after every round, on a text that is not counted below."""
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
    repair: Work
    """Of the repair at the end, or at a target's limits of that after each round, at most."""
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


class Outline(ModelSource):
    """A model of which no more than the config need be there."""

    resident = False

    def __init__(self, model: str | Path, options: PruneOptions) -> None:
        self.name = str(model)
        self.folder = resolve_model(model, weights=False, dtype=options.dtype)
        self.config = read_config(self.folder)
        self._device = choose_device(options.device)
        self._dtype = choose_dtype(options.dtype, self.config, self._device)
        checkpoint = _local_weights(model, self.config)
        self.described = Decoder(build_skeleton(self.config, self._dtype, checkpoint=checkpoint))

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype


@usual()
def plan(model: str | Path, layers: int | None = None, **options: Unpack[PlanKeywords]) -> RunPlan:
    """Plan a run from a model's config alone; rates are measured on the machine, which takes about a second.

    The placement has room for what the ``metric`` takes, for blocks of ``span`` layers (by default as
    :func:`prunecomp.prune` has them), and the ``repair``; the work is that of the passes, the repair's at most. Bytes,
    FLOPs and seconds; nothing is loaded.
    Raises a subclass of :class:`prunecomp.errors.PrunecompError`.

    >>> made = prunecomp.plan("examples/reference_model", 4, device="cpu", device_memory="2GB")
    >>> made.layers, made.bound in made.seconds, made.total.flops > 0
    (4, True, True)
    """
    chosen = PruneOptions.of("plan", {"layers": layers, **options})
    if chosen.metric in METRICS and METRICS[chosen.metric].takes_order:  # which ones they are makes no difference
        chosen = replace(chosen, given=[0])
    chosen.check(METRICS, COMPENSATIONS)
    outline = Outline(at_revision(model, chosen.revision), chosen)
    chosen = chosen.aimed(outline.num_layers)
    if chosen.given:
        chosen = replace(chosen, given=list(range(outline.num_layers if chosen.target else chosen.layers)))
    session = Session(outline, chosen)
    chosen = session.options
    session.candidates()
    samples, seqlen = chosen.samples, window_length(outline, chosen.seqlen)
    placement = session.place(samples, seqlen, session.demand())
    shape = outline.shape()
    first, later, total = rounds(shape, placement, samples, seqlen, chosen.layers)
    repaired = 0.0
    if chosen.repair != "none":
        repaired = sum(
            most_layer_forwards(shape.num_layers, n, samples, samples * seqlen, STRETCHES * (chosen.repair == "auto"))
            for n in (range(1, chosen.layers + 1) if chosen.limits else [chosen.layers])
        )
    repair = stretch(shape, placement, samples, seqlen, repaired)
    total = total.plus(repair)
    rates = measure_rates(outline.device, outline.dtype, shape.hidden_size, outline.folder, chosen.disk)
    return RunPlan(
        model=outline.name,
        device=str(outline.device),
        dtype=str(outline.dtype).removeprefix("torch."),
        layers=chosen.layers,
        target=[str(aim) for aim in chosen.target or []],
        metric=chosen.metric,
        windows=samples,
        seqlen=seqlen,
        shape=shape,
        placement=placement,
        compiled=should_compile("auto", total.flops, outline.device),
        adds=METRICS[chosen.metric]().adds,
        first_round=first,
        later_round=later,
        repair=repair,
        total=total,
        most_layer_forwards=sum(shape.num_layers - done for done in range(chosen.layers)),
        rates=rates,
        seconds=seconds(total, rates),
    )


def _local_weights(model: str | Path, config: Any) -> StoredTensors | None:
    """Those of a local folder, to hold its config to; a config alone, or a pickle, is planned on trust."""
    folder = Path(model)
    if not folder.is_dir() or not any((folder / file).is_file() for file in (SINGLE, INDEX)):
        return None
    return under_model_names(dequantised(open_checkpoint(folder), config), families.find(config.model_type))
