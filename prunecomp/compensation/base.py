"""What a compensation gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Seam:
    """The scalar that takes a removed layer's place, and the channel means it had to leave out."""

    scale: float
    dead_channels: int = 0
    """(sequence, channel) pairs whose mean magnitude below the layer is zero."""
