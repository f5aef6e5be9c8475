"""Quantised checkpoints made number by number from the definitions of their formats, and the weights that they mean."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LAYER_MATRIX = re.compile(r"model\.layers\.\d+\..*(proj|fc\d|\.w\d)\.weight")


@dataclass(frozen=True)
class Made:
    """One quantised weight: its tensors by what follows the module's name, and what they mean, float64 [out, in]."""

    stored: dict[str, torch.Tensor]
    meant: torch.Tensor


Make = Callable[[int, int, torch.Generator], Made]


@dataclass(frozen=True)
class Variant:
    """A format: what a config says of it, how a weight is made, and the tensor that takes a fold."""

    config: dict[str, Any]
    make: Make
    scale: str
    case: str = "llama"
    options: dict[str, Any] = field(default_factory=dict)


def quantise(folder: Path, variant: Variant, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Put quantised weights in the place of all matrices inside layers; the weights that they mean, by name."""
    path = folder / "model.safetensors"
    tensors, meant = {}, {}
    for name, tensor in load_file(path).items():
        if LAYER_MATRIX.fullmatch(name) is None:
            tensors[name] = tensor
            continue
        made = variant.make(*tensor.shape, generator)
        owner = name.removesuffix(".weight")
        tensors.update({f"{owner}.{leaf}": part for leaf, part in made.stored.items()})
        meant[name] = made.meant
    save_file(tensors, path, metadata={"format": "pt"})
    change_config(folder, quantization_config=variant.config)
    return meant


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def integers(shape: tuple[int, ...], bits: int, generator: torch.Generator) -> list[list[int]]:
    drawn: list[list[int]] = torch.randint(0, 2**bits, shape, generator=generator).tolist()
    return drawn


def grid(rows: int, columns: int, value: Callable[[int, int], float]) -> torch.Tensor:
    return torch.tensor([[value(i, j) for j in range(columns)] for i in range(rows)], dtype=torch.float64)


def word(numbers: list[int], bits: int) -> int:
    """Numbers in an int32, the first in its lowest bits."""
    unsigned = sum(number << bits * place for place, number in enumerate(numbers))
    return unsigned - 2**32 if unsigned >= 2**31 else unsigned


def fp8(block: tuple[int, int] | None, leaf: str = "weight_scale_inv", per_row: bool = False) -> Make:
    def make(rows: int, columns: int, generator: torch.Generator) -> Made:
        size = 1.5 / columns**0.5
        values = (torch.randn(rows, columns, generator=generator) * 100).to(torch.float8_e4m3fn)
        b, c = block or ((1, columns) if per_row else (rows, columns))
        scale = uniform((-(-rows // b), -(-columns // c)), 0.004 * size, 0.016 * size, generator)
        plain, scales = values.float().tolist(), scale.tolist()
        meant = grid(rows, columns, lambda i, j: plain[i][j] * scales[i // b][j // c])
        stored = scale if block or per_row else scale.reshape(())
        return Made({"weight": values, leaf: stored}, meant)

    return make


FP8 = {
    "fp8-blocks": Variant({"quant_method": "fp8", "weight_block_size": [16, 16], "fmt": "e4m3"},
                          fp8((16, 16)), "weight_scale_inv"),
    "fp8-ragged": Variant({"quant_method": "fp8", "weight_block_size": [32, 20], "activation_scheme": "dynamic"},
                          fp8((32, 20)), "weight_scale_inv"),
    "fp8-tensor": Variant({"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"},
                          fp8(None), "weight_scale_inv"),
    "fp8-rows": Variant({"quant_method": "fp8", "weight_block_size": None}, fp8(None, per_row=True),
                        "weight_scale_inv"),
}  # fmt: skip

VARIANTS = {**FP8}
