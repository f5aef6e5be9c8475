"""The flow of Prune&Comp as its paper describes it, written by us to measure against: plain, and nothing reused.

Each round runs the whole model, head included, one sequence at a time under hooks: once over the scoring sequences for
block influence, once over the scaling sequences for the magnitudes around the layer that goes. The layer is then taken
out and the weights below it scaled in place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Outcome:
    """What a baseline decided, and how much it ran."""

    removed: list[int] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    layer_forwards: float = 0.0
    """Passes of one sequence through one layer, over the number of scoring sequences."""


@torch.no_grad()
def run_hooked(model: Any, sequences: torch.Tensor, see: Callable[[int, torch.Tensor, torch.Tensor], None]) -> None:
    """Whole-model passes at batch 1; ``see(position, input, output)`` is called for each layer, [1, S, d]."""
    handles = []
    for position, layer in enumerate(model.model.layers):

        def hook(module: Any, args: Any, output: Any, position: int = position) -> None:
            see(position, args[0], output[0] if isinstance(output, tuple) else output)

        handles.append(layer.register_forward_hook(hook))
    for sequence in sequences:
        model(input_ids=sequence.unsqueeze(0).to(model.device), use_cache=False)
    for handle in handles:
        handle.remove()


def block_influence(model: Any, sequences: torch.Tensor) -> list[float]:
    cosines = [0.0] * len(model.model.layers)

    def see(position: int, x: torch.Tensor, y: torch.Tensor) -> None:
        cosines[position] += float(torch.cosine_similarity(x.float(), y.float(), dim=-1).mean())

    run_hooked(model, sequences, see)
    return [1.0 - total / len(sequences) for total in cosines]


def magnitude_scale(model: Any, sequences: torch.Tensor, layer: int) -> float:
    ratios: list[float] = []

    def see(position: int, x: torch.Tensor, y: torch.Tensor) -> None:
        if position == layer:
            before, after = x.float().abs().mean(dim=1), y.float().abs().mean(dim=1)
            ratios.append(float((after / before).mean()))

    run_hooked(model, sequences, see)
    return sum(ratios) / len(ratios)


@torch.no_grad()
def scale_below(model: Any, position: int, scale: float) -> None:
    model.model.embed_tokens.weight.mul_(scale)
    for layer in model.model.layers[:position]:
        layer.self_attn.o_proj.weight.mul_(scale)
        layer.mlp.down_proj.weight.mul_(scale)


def drop(model: Any, position: int) -> None:
    kept = [layer for index, layer in enumerate(model.model.layers) if index != position]
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)


def prune(model: Any, layers: int, scoring: torch.Tensor, scaling: torch.Tensor) -> Outcome:
    """Remove ``layers`` layers of a Llama-shaped model by block influence; ``model`` itself is left as it was.

    ``scoring`` and ``scaling`` are token ids [N, S]; the paper's code uses 128 sequences of 256 to score, all to scale.
    """
    model = copy.deepcopy(model)
    names = list(range(len(model.model.layers)))
    outcome = Outcome()
    for _ in range(layers):
        scores = block_influence(model, scoring)
        position = min(range(len(scores)), key=lambda p: (scores[p], p))
        scale = magnitude_scale(model, scaling, position)
        outcome.layer_forwards += len(names) * (1 + len(scaling) / len(scoring))
        scale_below(model, position, scale)
        drop(model, position)
        outcome.removed.append(names.pop(position))
        outcome.scales.append(scale)
    return outcome
