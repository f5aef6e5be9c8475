"""How the memory for states is shared among the runs of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from prunecomp.data.windows import Windows
from prunecomp.engine.placement import Demand, Placement, largest_share
from prunecomp.engine.states import Tier, set_apart


def branching_demand(
    demands: Sequence[Demand],
    num_layers: int,
    depth: int,
    calibration: Windows,
    others: Sequence[Windows],
    runs: int,
    apart: int,
) -> Demand:
    """What scoring and repairing take beside a forward pass, for all arms and with room for the walk: ``runs`` runs
    over the calibration windows, and the ``others``, each with the boundaries of every model on the way down to
    ``depth`` removals, if memory has them; and as many set ``apart``."""
    wanted = depth * num_layers + max(demand.boundaries for demand in demands)
    tokens = calibration.count * calibration.seqlen
    all_runs = runs + sum(max(1.0, some.count * some.seqlen / tokens) for some in others)
    return Demand(
        lambda num_tokens: max(demand.nbytes(num_tokens) for demand in demands),
        boundaries=int(wanted * all_runs) + apart,
    )


def share_out(
    placement: Placement,
    num_layers: int,
    calibration: Windows,
    texts: Sequence[Windows],
    runs: int,
    processes: int,
    device: torch.device,
) -> tuple[Placement, Placement]:
    """Placements for runs over the calibration windows and over texts, which differ in how many boundaries of their own
    windows they may keep.

    What ``placement`` has for boundaries of the calibration windows, less room for the dense model's last states on all
    ``texts``, is cut into equal numbers of boundaries of all ``runs`` runs over them and of all
    texts.

    Where not even one model's boundaries could then be kept, texts keep none, are run from the embedding each time, and
    their last states are not held.
    """
    sizes = [largest_share(some.count, some.seqlen, processes, device) * some.seqlen for some in (calibration, *texts)]
    capacity = dict(placement.capacity)
    if placement.group_size is not None:  # the boundary between two groups may be a text's, and larger
        missing = -(-(max(sizes) - sizes[0]) // sizes[0])
        capacity[placement.carry] = max(0, capacity.get(placement.carry, 0) - missing)
    total = runs * sizes[0] + sum(sizes[1:])
    _, left = set_apart(capacity, -(-sum(sizes[1:]) // sizes[0]))
    joint = {tier: count * sizes[0] // total for tier, count in left.items()}
    if sum(joint.values()) >= num_layers - 1:
        return replace(placement, capacity=joint), replace(placement, capacity=joint)
    alone = {tier: count // runs for tier, count in capacity.items()}
    return replace(placement, capacity=alone), replace(placement, capacity=dict.fromkeys(Tier, 0))


def beside_states(placement: Placement, num_layers: int) -> Placement:
    """The placement of a run beside whose states a metric keeps as many again, in what room there is beyond one
    boundary for each layer: both together have the capacity of ``placement``."""
    _, left = set_apart(placement.capacity, num_layers - 1)
    capacity = {tier: count - (left[tier] + 1) // 2 for tier, count in placement.capacity.items()}
    return replace(placement, capacity=capacity)
