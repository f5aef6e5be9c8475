"""FP8 as transformers and DeepSeek store it: ``weight`` in eight-bit floats, ``weight_scale_inv`` a block, or one.

The weight is ``weight * weight_scale_inv``: the scale is the inverse of what the weight was multiplied by when it was
quantised, so it is a multiplier for whoever reads it (``Fp8Dequantize`` in transformers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunecomp.errors import CheckpointError
from prunecomp.model.quantised.stored import Settings, StoredWeight, check_blocks, no_scale_to_fold, pieces, spread
from prunecomp.model.weights import StoredTensors

VALUES = {torch.float8_e4m3fn, torch.float8_e5m2}
INPUT_SCALES = ("activation_scale", "input_scale")

POWERS_OF_TWO = "its scales are powers of two (scale_fmt ue8m0), to which kernels round what is not"


@dataclass(frozen=True)
class ScaledFloats(StoredWeight):
    """Small floats [.., rows, columns] and their scales: one, one a row, or one a block of ``block`` size."""

    block: tuple[int, int] | None

    def read(self, files: StoredTensors) -> torch.Tensor:
        values = files.read(self.parts[0])
        if not self.scales:
            return values.float()
        scale, block = self._scale(files, values), self.block or (1, 1)
        result = torch.empty(values.shape, dtype=torch.float32)
        for rows in pieces(values.shape[-2], values[..., 0, :].numel()):
            torch.mul(
                values[..., rows, :].float(), spread(scale, block, rows, values.shape[-1]), out=result[..., rows, :]
            )
        return result

    def _scale(self, files: StoredTensors, values: torch.Tensor) -> torch.Tensor:
        """Float32, [.., R, C] to be spread."""
        name = self.scales[0]
        scale = files.read(name).float()
        if self.block is not None:
            check_blocks(files, name, scale.shape, values.shape, self.block)
            return scale
        if scale.numel() == 1:
            return scale.reshape(1, 1)
        if scale.numel() == values.shape[-2] and values.ndim == 2:
            return scale.reshape(-1, 1)
        raise CheckpointError(
            f"{files.location(name)}: {name} is {list(scale.shape)}, but weight_block_size is not stated: one scale "
            f"can be read, or one a row of the weight's {list(values.shape)}"
        )


def check(stated: Settings, where: str) -> None:
    """Raise :class:`CheckpointError` for a variant that is not read."""
    if stated.get("fmt", "e4m3") not in ("e4m3", "e5m2"):
        raise CheckpointError(f"{where}: FP8 weights in {stated['fmt']} are not read; e4m3 and e5m2 are")
    if stated.get("expert_dtype", "fp8") != "fp8":
        raise CheckpointError(f"{where}: experts in {stated['expert_dtype']} are not read; fp8 is")


def weights(files: StoredTensors, stated: Settings) -> dict[str, StoredWeight]:
    """Every FP8 weight by the model's name. Raises :class:`CheckpointError` for one whose scale has another name."""
    size = stated.get("weight_block_size")
    block = None if size is None else (int(size[0]), int(size[1]))
    names = set(files.names())
    found: dict[str, StoredWeight] = {}
    for name in files.names():
        if files.dtype(name) not in VALUES:
            continue
        owner, _, leaf = name.rpartition(".")
        inputs = [f"{owner}.{scale}" for scale in INPUT_SCALES if f"{owner}.{scale}" in names]
        input_scale = inputs[0] if inputs else None
        scale = f"{name}_scale_inv"
        if scale in names:
            fixed = POWERS_OF_TWO if stated.get("scale_fmt") == "ue8m0" else no_scale_to_fold(files, [scale])
            if files.dtype(scale) == torch.uint8:
                raise CheckpointError(f"{files.location(scale)}: {scale} is stored in bytes (MXFP8), which is not read")
            found[name] = ScaledFloats((name, scale), (scale,), block, fixed=fixed, input_scale=input_scale)
            continue
        for other in (f"{owner}.scale", f"{owner}.qscale_{leaf}", f"{name}_scale"):
            if other in names:
                raise CheckpointError(
                    f"{files.location(name)}: the scale of {name} is called {other}; {leaf}_scale_inv can be read. "
                    "Load the model in transformers and save it again"
                )
        found[name] = ScaledFloats((name,), (), None, fixed="it has no scale of its own", input_scale=input_scale)
    return found
