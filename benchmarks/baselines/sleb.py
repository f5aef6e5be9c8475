"""SLEB's flow (arXiv 2402.09025) as its paper describes it, written by us to measure against.

Each round takes every candidate out in turn and runs the whole remaining model over the calibration set for its loss;
the one whose absence costs least goes for good.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from benchmarks.baselines.official import Outcome, drop


@torch.no_grad()
def mean_loss(model: Any, sequences: torch.Tensor) -> float:
    losses = [float(model(input_ids=s[None].to(model.device), labels=s[None].to(model.device), use_cache=False).loss)
              for s in sequences]  # fmt: skip
    return sum(losses) / len(losses)


def prune(model: Any, layers: int, sequences: torch.Tensor) -> Outcome:
    """Remove ``layers`` layers by leave-one-out loss on token ids [N, S]; candidates are 1..L-2 of the original."""
    model = copy.deepcopy(model)
    names = list(range(len(model.model.layers)))
    last = names[-1]
    outcome = Outcome()
    for _ in range(layers):
        everything = list(model.model.layers)
        losses: dict[int, float] = {}
        for position, name in enumerate(names):
            if name in (0, last):
                continue
            model.model.layers = torch.nn.ModuleList(everything[:position] + everything[position + 1 :])
            losses[position] = mean_loss(model, sequences)
            outcome.layer_forwards += len(names) - 1
        model.model.layers = torch.nn.ModuleList(everything)
        position = min(losses, key=lambda p: (losses[p], p))
        drop(model, position)
        outcome.removed.append(names.pop(position))
        outcome.scales.append(1.0)
    return outcome
