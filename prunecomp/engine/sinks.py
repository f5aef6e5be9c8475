"""What rides on a sweep: objects that see every layer's input and output once."""

from __future__ import annotations

from typing import Protocol

import torch

from prunecomp.errors import NumericalError
from prunecomp.ops import layer_stats
from prunecomp.ops.reference import magnitude


class Sink(Protocol):
    def update(self, layer: int, rows: slice, x: torch.Tensor, y: torch.Tensor) -> None:
        """See a layer's input ``x`` and output ``y``, [B, S, d], of the windows ``rows``."""
        ...


class PairStatistics:
    """For every surviving layer: cosine of input and output, and the magnitudes of both, sequence by sequence.

    All sums are float64 on the CPU. What lies below a cut stays valid when a layer is removed.
    """

    def __init__(self, num_sequences: int, seqlen: int) -> None:
        self.num_sequences = num_sequences
        self.seqlen = seqlen
        self._cosine: dict[int, torch.Tensor] = {}  # [N]
        self._before: dict[int, torch.Tensor] = {}  # [N, d] of the stream as it enters the layer, its seam applied
        self._after: dict[int, torch.Tensor] = {}  # [N, d] of the stream as the layer leaves it
        self._zero_rows: dict[int, int] = {}
        self._previous: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, layer: int, rows: slice, x: torch.Tensor, y: torch.Tensor) -> None:
        stats = layer_stats(x, y)
        bad = stats.nonfinite_rows.cpu().nonzero()
        if len(bad):
            sequence = rows.start + int(bad[0])
            count = int(stats.nonfinite_rows.cpu()[bad[0]])
            raise NumericalError(
                f"layer {layer}, sequence {sequence}: {count} of {self.seqlen} tokens have an activation that is not "
                "finite. Look at the layer's weights, or run with --dtype float32 or bfloat16."
            )
        after = stats.magnitude.cpu()
        # Between two layers with no seam the stream is the very same tensor: its magnitudes are known already.
        known = self._previous is not None and self._previous[0] is x
        before = self._previous[1] if known and self._previous else magnitude(x).cpu()
        self._previous = (y, after)
        if layer not in self._cosine:
            n, d = self.num_sequences, x.shape[-1]
            self._cosine[layer] = torch.empty(n, dtype=torch.float64).fill_(torch.nan)
            self._before[layer] = torch.empty(n, d, dtype=torch.float64).fill_(torch.nan)
            self._after[layer] = torch.empty(n, d, dtype=torch.float64).fill_(torch.nan)
        if rows.start == 0:
            self._zero_rows[layer] = 0
        self._cosine[layer][rows] = stats.cosine.cpu()
        self._before[layer][rows] = before
        self._after[layer][rows] = after
        self._zero_rows[layer] += int(stats.zero_rows.sum())

    def mean_cosine(self, layer: int) -> float:
        """Mean over all tokens of cos(x_l, x_{l+1})."""
        return float(self._cosine[layer].sum() / (self.num_sequences * self.seqlen))

    def magnitudes(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over tokens of |x| before and after a layer, each [N, d] float64."""
        return self._before[layer], self._after[layer]

    def zero_rows(self, layer: int) -> int:
        """Tokens at which the layer's input or output is the zero vector."""
        return self._zero_rows[layer]
