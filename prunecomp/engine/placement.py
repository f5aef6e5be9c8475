"""Where things live and how much runs at once, decided before anything runs."""

from __future__ import annotations

import torch

TOKENS_A_MICRO_BATCH = 4096
"""Enough tokens to fill the matrix units, few enough that a layer's activations stay small beside its weights."""


def micro_batch(count: int, seqlen: int) -> int:
    """Windows run together. Part of the run's identity: another micro-batch may round differently."""
    return max(1, min(count, TOKENS_A_MICRO_BATCH // seqlen))


def state_device(nbytes: int, compute_device: torch.device) -> torch.device:
    """The compute device where ``nbytes`` of states leave half of its free memory alone, else the host."""
    if compute_device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(compute_device)
        return compute_device if nbytes < free // 2 else torch.device("cpu")
    return compute_device
