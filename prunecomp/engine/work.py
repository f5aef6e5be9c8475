"""The work of a run, counted before it is done: passes of layers, FLOPs, and bytes that move."""

from __future__ import annotations

from dataclasses import dataclass

from prunecomp.engine.placement import ModelShape, Placement
from prunecomp.engine.rates import Rates
from prunecomp.engine.retention import choose_boundaries, expected_recomputation
from prunecomp.engine.states import Tier


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
