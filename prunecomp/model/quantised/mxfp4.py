"""MXFP4 as GPT-OSS stores its experts: four-bit floats in blocks of 32 inputs, each with a power of two.

A byte of ``_blocks`` holds two neighbouring inputs, the first in its low half; ``_scales`` holds the exponent plus 127.
The files have an expert's outputs as rows, the model has them as columns (OCP Microscaling Formats v1.0).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunecomp.errors import CheckpointError
from prunecomp.model.quantised.stored import Settings, StoredWeight, check_dtype, check_there
from prunecomp.model.weights import StoredTensors

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""E2M1, by its four bits."""

BIAS = 127
POWERS_OF_TWO = "its scales are powers of two (MXFP4), which no other factor goes into"


@dataclass(frozen=True)
class ExpertBlocks(StoredWeight):
    """``parts`` are the blocks, uint8 [experts, out, blocks, 16], and the scales, uint8 [experts, out, blocks]."""

    def shape(self, files: StoredTensors) -> tuple[int, ...]:
        experts, outputs, blocks, size = files.shape(self.parts[0])
        return experts, 2 * blocks * size, outputs

    def read(self, files: StoredTensors) -> torch.Tensor:
        numbers, exponents = files.read(self.parts[0]), files.read(self.parts[1])
        table = torch.tensor(VALUES)
        weight = torch.empty(self.shape(files))
        for expert in range(len(weight)):
            part = numbers[expert]
            values = table[torch.stack([part & 15, part >> 4], dim=-1).flatten(-2).int()]  # [out, blocks, 32]
            scaled = torch.ldexp(values, (exponents[expert].int() - BIAS).unsqueeze(-1))
            weight[expert] = scaled.flatten(-2).T
        return weight


def weights(files: StoredTensors, stated: Settings) -> dict[str, StoredWeight]:
    """Every MXFP4 weight by the model's name. Raises :class:`CheckpointError` for blocks whose scales do not fit."""
    names = set(files.names())
    found: dict[str, StoredWeight] = {}
    for name in files.names():
        if not name.endswith("_blocks"):
            continue
        owner = name.removesuffix("_blocks")
        scales = f"{owner}_scales"
        check_there(files, (name, scales), names)
        for part in (name, scales):
            check_dtype(files, part, {torch.uint8})
        shape = files.shape(name)
        if len(shape) != 4 or files.shape(scales) != shape[:3]:
            raise CheckpointError(
                f"{files.location(name)}: {name} is {list(shape)} and {scales} {list(files.shape(scales))}; experts, "
                "outputs and blocks, in both, and 16 bytes a block are read"
            )
        found[owner] = ExpertBlocks((name, scales), (), fixed=POWERS_OF_TWO)
    return found
