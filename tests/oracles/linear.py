"""The linear repair from its formula: float64, full re-runs, weights changed in place, nothing of the package."""

from __future__ import annotations

import copy
from typing import Any

import torch

from tests.oracles.iterative import block_influence, boundary_states, drop_layer, magnitude_scale, remove


@torch.no_grad()
def written_by_mlp(model: Any, tokens: torch.Tensor, p: int) -> torch.Tensor:
    """What the down projection at position p gives for one sequence: [S, d]."""
    seen: list[torch.Tensor] = []
    handle = model.model.layers[p].mlp.down_proj.register_forward_hook(lambda _, args, out: seen.append(out[0]))
    model(input_ids=tokens.unsqueeze(0), use_cache=False)
    handle.remove()
    return seen[0]


def ridge_solution(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
    """argmin |a D - b|^2 + weight |D|^2, by least squares on the augmented rows."""
    k = a.shape[1]
    padded = torch.cat([a, weight**0.5 * torch.eye(k, dtype=a.dtype)])
    return torch.linalg.lstsq(padded, torch.cat([b, b.new_zeros(k, b.shape[1])])).solution


def fit(model: Any, windows: torch.Tensor, p: int, ridge: float) -> torch.Tensor:
    """D for removing the layer at position p > 0."""
    rows, wanted = [], []
    for tokens in windows:
        states = boundary_states(model, tokens)
        size = states[p + 1].square().mean(dim=-1, keepdim=True).sqrt()
        rows.append(written_by_mlp(model, tokens, p - 1) / size)
        wanted.append((states[p + 1] - states[p]) / size)
    a, b = torch.cat(rows), torch.cat(wanted)
    return ridge_solution(a, b, ridge * float(a.square().sum(dim=0).mean()))


@torch.no_grad()
def prune(model: Any, windows: torch.Tensor, layers: int, ridge: float) -> tuple[list[int], Any]:
    """Removed layers by block influence, and the repaired float64 model."""
    work = copy.deepcopy(model).double()
    names = list(range(len(work.model.layers)))
    removed: list[int] = []
    for _ in range(layers):
        states = [boundary_states(work, tokens) for tokens in windows]
        p = min(range(len(names)), key=lambda q: (block_influence(states, q), q))
        removed.append(names[p])
        if p == 0:
            remove(work, names, names[p], magnitude_scale(states, p))
            continue
        change = fit(work, windows, p, ridge)
        writer = work.model.layers[p - 1].mlp.down_proj
        writer.weight.add_(change.T @ writer.weight)
        if writer.bias is not None:
            writer.bias.add_(change.T @ writer.bias)
        drop_layer(work, p)
        names.pop(p)
    return removed, work
