"""Magnitude: how large a layer's weights are."""

from __future__ import annotations

import torch
from torch import nn

from prunecomp.metrics.base import Evidence, Metric
from prunecomp.ops import weight_norms


class Magnitude(Metric):
    """Sum of |w| over a layer's weight matrices and norm gains (Mag+; Prune&Comp, section 5), on the original weights.

    The official code scores the weights that its own compensation has scaled, so that its picks march upwards; here
    weights are never touched, and a layer's score is the same in every round. Each layer is read once.
    """

    def __init__(self) -> None:
        self._sums: dict[int, float] = {}

    def score(self, evidence: Evidence) -> dict[int, float]:
        if not self._sums:
            decoder = evidence.decoder
            for (layer,) in decoder.weights.walk([(layer,) for layer in range(decoder.num_layers)]):
                self._sums[layer] = layer_magnitude(decoder.layers[layer])
        return {layer: self._sums[layer] for layer in evidence.stack.alive}

    def barriers(self, num_layers: int) -> set[int]:
        """Candidates are 4..L-3, as in the paper's Mag+ and Taylor+."""
        return {layer for layer in range(num_layers) if not 4 <= layer <= num_layers - 3}


def layer_magnitude(layer: nn.Module) -> float:
    """Biases do not count."""
    with torch.no_grad():
        sums = [
            weight_norms(parameter, (1,)) for name, parameter in layer.named_parameters() if name.endswith("weight")
        ]
        return float(torch.stack(sums).sum())
