"""What a compensation looks at, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prunecomp.engine.run import Run
from prunecomp.engine.statistics import Statistics
from prunecomp.model.stack import Overlay


@dataclass(frozen=True)
class Removal:
    """Neighbouring survivors that are about to go, and the model as it is with them."""

    run: Run
    block: tuple[int, ...]
    """Original indices of the layers, from below."""
    statistics: Statistics
    """From which the scores came: of ``run``, or in a one-shot run of the model before any cut."""


@dataclass(frozen=True)
class Seam:
    """What takes the place of the removed layers: a scalar on the stream, and weights that stand in for a survivor's.

    A compensation that chooses says which one it took and what each would have cost.
    """

    scale: float
    dead_channels: int = 0
    """(sequence, channel) pairs whose mean magnitude below the layers is zero."""
    overlays: Mapping[int, Overlay] = field(default_factory=dict)
    chosen: str | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    """Nats a token on the windows that decided, by what was compared."""


Estimate = Callable[[Removal], Seam]


def wants(*, states: bool = False, replaces: bool = False) -> Callable[[Estimate], Estimate]:
    """Marks a compensation that sets out from the states that a pass keeps, or may replace weights, which quantised
    ones cannot be."""

    def mark(estimate: Estimate) -> Estimate:
        for name, value in (("reads_states", states), ("replaces_weights", replaces)):
            setattr(estimate, name, value)
        return estimate

    return mark


def put_in_place(run: Run, block: tuple[int, ...], seam: Seam) -> None:
    """Take the layers out of ``run``, and have the seam hold."""
    for layer, overlay in seam.overlays.items():
        run.replace(layer, overlay)
    run.remove(block, seam.scale)
