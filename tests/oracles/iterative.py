"""Prune&Comp from its formulas: float64, whole-model re-runs, scaled weights, no cache, nothing of the package.

After each removal the weights themselves are scaled (the paper's form: embedding and all writers below), so that this
oracle shares neither the seam model nor the fold with what it checks.
"""

from __future__ import annotations

import copy
from typing import Any

import torch


@torch.no_grad()
def boundary_states(model: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The residual stream entering each layer, and leaving the last: L + 1 tensors [S, d] for one sequence [S]."""
    states: list[torch.Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, args: states.append(args[0][0].double()))
        for layer in model.model.layers
    ]
    handles.append(model.model.norm.register_forward_pre_hook(lambda _, args: states.append(args[0][0].double())))
    model(input_ids=tokens.unsqueeze(0), use_cache=False)
    for handle in handles:
        handle.remove()
    return states


def block_influence(per_sequence: list[list[torch.Tensor]], p: int) -> float:
    cosines = []
    for states in per_sequence:
        for x, y in zip(states[p], states[p + 1], strict=True):
            cosines.append(float(x @ y / (x.norm() * y.norm())))
    return 1.0 - sum(cosines) / len(cosines)


def magnitude_scale(per_sequence: list[list[torch.Tensor]], p: int) -> float:
    means = []
    for states in per_sequence:
        ratios = states[p + 1].abs().mean(dim=0) / states[p].abs().mean(dim=0)
        means.append(float(ratios.mean()))
    return sum(means) / len(means)


@torch.no_grad()
def scale_down(model: Any, p: int, scale: float) -> None:
    """Multiply everything that writes below layer ``p``; a tied head keeps its function through the final norm."""
    model.model.embed_tokens.weight.mul_(scale)
    for layer in model.model.layers[:p]:
        for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
            for parameter in writer.parameters():
                parameter.mul_(scale)
    if model.lm_head.weight is model.model.embed_tokens.weight:
        model.model.norm.weight.div_(scale)


def drop_layer(model: Any, p: int) -> None:
    layers = [layer for index, layer in enumerate(model.model.layers) if index != p]
    model.model.layers = torch.nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [kind for i, kind in enumerate(model.config.layer_types) if i != p]


def prune(
    model: Any, windows: torch.Tensor, layers: int, *, one_shot: bool = False, compensate: bool = True
) -> tuple[list[int], list[float], Any]:
    """Removed layers (original indices, in order), scales, and the pruned float64 model."""
    work = copy.deepcopy(model).double()
    names = list(range(len(work.model.layers)))
    removed: list[int] = []
    scales: list[float] = []
    if one_shot:
        states = [boundary_states(work, tokens) for tokens in windows]
        ranked = sorted(names, key=lambda p: (block_influence(states, p), p))[:layers]
        chosen = [(layer, magnitude_scale(states, layer) if compensate else 1.0) for layer in ranked]
        for layer, scale in chosen:
            remove(work, names, layer, scale)
        return ranked, [scale for _, scale in chosen], work
    for _ in range(layers):
        states = [boundary_states(work, tokens) for tokens in windows]
        p = min(range(len(names)), key=lambda q: (block_influence(states, q), q))
        scale = magnitude_scale(states, p) if compensate else 1.0
        removed.append(names[p])
        scales.append(scale)
        remove(work, names, names[p], scale)
    return removed, scales, work


def remove(work: Any, names: list[int], layer: int, scale: float) -> None:
    p = names.index(layer)
    if p < len(names) - 1:  # above the last layer the final norm absorbs the scale
        scale_down(work, p, scale)
    drop_layer(work, p)
    names.remove(layer)
