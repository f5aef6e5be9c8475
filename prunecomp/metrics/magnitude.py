"""Magnitude: how large a layer's weights are."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from prunecomp.metrics.base import Candidates, Metric
from prunecomp.model.adapter import names_parameter
from prunecomp.ops import weight_norms


class Magnitude(Metric):
    """Sum of |w| over a layer's weight matrices and norm gains (Mag+; Prune&Comp, section 5), on the original weights.

    The official code scores the weights that its own compensation has scaled, so that its picks march upwards; here
    weights are never touched, and a layer's score is the same in every round. Each layer is read once.

    ``parity="official"`` scores the scaled weights all the same, without a weight being touched: the paper's fold
    multiplies what writes to the stream below each cut, so the writers' part of a layer's sum is multiplied by all
    seams above the layer.
    """

    heeds_parity = True

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, float]] = {}

    def score(self, candidates: Candidates) -> dict[int, float]:
        decoder, stack = candidates.decoder, candidates.stack
        if not self._sums:
            decoder.check_plain("the metric magnitude")
            for (layer,) in decoder.weights.walk([(layer,) for layer in range(decoder.num_layers)]):
                self._sums[layer] = layer_magnitude(decoder.layers[layer], decoder.family.writers)
        official = candidates.parity == "official"
        scales = stack.seam_product_above() if official else [1.0] * len(stack.alive)
        scores = {}
        for layer, scale in zip(stack.alive, scales, strict=True):
            others, writers = self._sums[layer]
            scores[layer] = others + writers * scale
        return scores

    def barriers(self, num_layers: int) -> set[int]:
        """Candidates are 4..L-3, as in the paper's Mag+ and Taylor+."""
        return ends(num_layers)


def ends(num_layers: int) -> set[int]:
    """The lowest four layers and the highest two."""
    return {layer for layer in range(num_layers) if not 4 <= layer <= num_layers - 3}


def is_weight(name: str) -> bool:
    """Whether a parameter of a layer counts: matrices, fused experts and norm gains do, biases do not."""
    return not name.endswith("bias")


def layer_magnitude(layer: nn.Module, writers: Collection[str]) -> tuple[float, float]:
    """The sum of |w| over what reads and computes, and over the weights of the ``writers``, by their paths."""
    with torch.no_grad():
        sums = {
            name: float(weight_norms(parameter, (1,)))
            for name, parameter in layer.named_parameters()
            if is_weight(name)
        }
    written = sum(value for name, value in sums.items() if names_parameter(writers, name))
    others = sum(value for name, value in sums.items() if not names_parameter(writers, name))
    return others, written
