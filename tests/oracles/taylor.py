"""Taylor+ from its formula: float64, one backward pass through the whole model a sequence, nothing of the package.

Compensations are put into the weights, as :mod:`tests.oracles.iterative` does it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn import functional

from tests.oracles import iterative


def scores(model: Any, sequences: list[torch.Tensor]) -> list[float]:
    """For each layer the sum over matrices and gains of ``|sum_n w * dloss_n / dw|``."""
    products: dict[str, torch.Tensor] = {}
    for tokens in sequences:
        model.zero_grad()
        logits = model(input_ids=tokens.unsqueeze(0), use_cache=False).logits[0]
        functional.cross_entropy(logits[:-1], tokens[1:]).backward()
        for name, parameter in model.named_parameters():
            product = (parameter * parameter.grad).detach()
            products[name] = product if name not in products else products[name] + product
    return [
        sum(
            float(product.abs().sum())
            for name, product in products.items()
            if name.startswith(f"model.layers.{p}.") and not name.endswith("bias")
        )
        for p in range(len(model.model.layers))
    ]


def prune(
    model: Any, sequences: list[torch.Tensor], layers: int, candidates: set[int]
) -> tuple[list[int], list[dict[int, float]]]:
    """Removed layers (original indices, in order), and the candidates' scores in each round."""
    work = copy.deepcopy(model).double().requires_grad_()
    names = list(range(len(work.model.layers)))
    removed: list[int] = []
    rounds: list[dict[int, float]] = []
    for _ in range(layers):
        found = dict(zip(names, scores(work, sequences), strict=True))
        rounds.append({layer: found[layer] for layer in names if layer in candidates})
        layer = min(rounds[-1], key=lambda name: (rounds[-1][name], name))
        states = [iterative.boundary_states(work, tokens) for tokens in sequences]
        iterative.remove(work, names, layer, iterative.magnitude_scale(states, names.index(layer)))
        removed.append(layer)
    return removed, rounds
