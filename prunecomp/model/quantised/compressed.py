"""compressed-tensors, as llm-compressor writes and vLLM reads it: ``scale * (value - zero_point)``.

Values are eight-bit floats or integers in ``weight``, or integers of fewer bits in ``weight_packed``: int32 words along
the inputs, each number with half its range added so that it is not negative. There is one scale a tensor, an output, a
group of inputs or a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from prunecomp.errors import CheckpointError
from prunecomp.model.quantised.stored import (
    Settings,
    StoredWeight,
    check_blocks,
    check_dtype,
    check_there,
    in_order,
    no_scale_to_fold,
    pieces,
    spread,
    unpack,
)
from prunecomp.model.weights import StoredTensors

FORMATS = ("naive-quantized", "int-quantized", "float-quantized", "pack-quantized", "mixed-precision", "dense")
VALUES = {torch.float8_e4m3fn, torch.float8_e5m2, torch.int8}
OPTIONAL = ("weight_zero_point", "weight_g_idx", "input_scale")
BITS = (2, 4, 8)
"""Those that fill a word without straddling two."""


@dataclass(frozen=True)
class CompressedWeight(StoredWeight):
    """``parts`` opens with the values and the scale. ``sizes`` and ``blocks`` are what the config has for groups and
    blocks, of which the scale's shape shows the one that holds here; ``bits`` likewise for packed values."""

    zero_point: str | None
    group_index: str | None
    true_shape: str | None
    sizes: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]
    bits: tuple[int, ...]

    def shape(self, files: StoredTensors) -> tuple[int, ...]:
        if self.true_shape is None:
            return super().shape(files)
        return tuple(int(extent) for extent in files.read(self.true_shape))

    def read(self, files: StoredTensors) -> torch.Tensor:
        values, scale = files.read(self.parts[0]), files.read(self.parts[1]).float()
        rows, columns = self.shape(files)
        shifts = None if self.true_shape is None else self._shifts(files, values.shape[1], columns)
        scale = scale.reshape(1, 1) if scale.numel() == 1 else scale.reshape(scale.shape[0], -1)
        zero = self._zero(files, shifts, scale)
        block, order = self._block(files, scale, rows, columns), self._order(files)
        weight = torch.empty(rows, columns)
        for some in pieces(rows, columns):
            part = values[some] if shifts is None else unpack(values[some], shifts)[:, :columns]
            if order is None:
                picked, zeros = spread(scale, block, some, columns), spread(zero, block, some, columns)
            else:
                picked, zeros = scale[some][:, order], zero[some][:, order] if zero.numel() > 1 else zero
            torch.mul(part.float() - zeros, picked, out=weight[some])
        return weight

    def _shifts(self, files: StoredTensors, words: int, columns: int) -> range:
        fitting = [bits for bits in self.bits if math.ceil(columns * bits / 32) == words]
        if len(fitting) != 1 or fitting[0] not in BITS:
            raise CheckpointError(
                f"{files.location(self.parts[0])}: {self.parts[0]} has {words} words for {columns} inputs, which is "
                f"none of the config's num_bits {list(self.bits)}; {', '.join(map(str, BITS))} are read"
            )
        return in_order(fitting[0])

    def _zero(self, files: StoredTensors, shifts: range | None, scale: torch.Tensor) -> torch.Tensor:
        """Float32, in the shape of the scale or [1, 1]; of packed values with half their range added, as these have."""
        if self.zero_point is None:
            return torch.full((1, 1), 0.0 if shifts is None else 2.0 ** (shifts.step - 1))
        stored = files.read(self.zero_point)
        if shifts is None or stored.dtype != torch.int32:
            half = 0.0 if shifts is None else 2.0 ** (shifts.step - 1)
            return stored.float().reshape(scale.shape) + half
        return unpack(stored.T, shifts).T[: scale.shape[0]].float()  # packed along the outputs

    def _block(self, files: StoredTensors, scale: torch.Tensor, rows: int, columns: int) -> tuple[int, int]:
        high, wide = scale.shape
        if high in (1, rows):
            fitting = [(1, size) for size in self.sizes if math.ceil(columns / size) == wide]
            if wide == 1:
                return 1, columns
            if not fitting and columns % wide == 0:
                fitting = [(1, columns // wide)]
            if fitting and high == rows:
                return fitting[0]
        for block in self.blocks:
            if (math.ceil(rows / block[0]), math.ceil(columns / block[1])) == (high, wide):
                return block
        known = self.blocks[0] if self.blocks else (1, self.sizes[0] if self.sizes else columns)
        check_blocks(files, self.parts[1], scale.shape, (rows, columns), known)
        return known

    def _order(self, files: StoredTensors) -> torch.Tensor | None:
        """The group of each input, int64 [in]; None where they are in order."""
        if self.group_index is None:
            return None
        index = files.read(self.group_index).long()
        return None if bool((index < 0).any()) else index


def check(stated: Settings, where: str) -> None:
    """Raise :class:`CheckpointError` for a variant that is not read."""
    groups = _groups(stated)
    formats = [stated.get("format") or "naive-quantized", *(group["format"] for group in groups if group.get("format"))]
    for name in formats:
        if name not in FORMATS:
            raise CheckpointError(
                f"{where}: compressed-tensors in the format {name} is not read; {', '.join(FORMATS[:4])} are. Prune "
                "the checkpoint it was made from, and quantise that"
            )
    sparse = (stated.get("sparsity_config") or {}).get("format", "dense")
    if sparse != "dense":
        raise CheckpointError(f"{where}: compressed-tensors with sparse weights ({sparse}) is not read; dense is")
    if (stated.get("transform_config") or {}).get("config_groups"):
        raise CheckpointError(
            f"{where}: compressed-tensors with a transform_config, which rotates weights, is not read"
        )


def _groups(stated: Settings) -> list[Settings]:
    groups = [group for group in (stated.get("config_groups") or {}).values() if isinstance(group, dict)]
    return [group for group in groups if group.get("weights")]


def weights(files: StoredTensors, stated: Settings) -> dict[str, StoredWeight]:
    """Every compressed weight by the model's name."""
    schemes = [group["weights"] for group in _groups(stated)]
    sizes = tuple(sorted({int(s["group_size"]) for s in schemes if (s.get("group_size") or -1) > 0}))
    blocks = tuple(sorted({(int(b[0]), int(b[1])) for s in schemes if (b := s.get("block_structure"))}))
    bits = tuple(sorted({int(s["num_bits"]) for s in schemes if s.get("num_bits")}))
    names = set(files.names())
    found: dict[str, StoredWeight] = {}
    for name in files.names():
        owner, _, leaf = name.rpartition(".")
        scale = f"{owner}.weight_scale"
        if leaf not in ("weight", "weight_packed") or (leaf == "weight" and scale not in names):
            continue
        check_dtype(files, name, VALUES if leaf == "weight" else {torch.int32})
        held = {part: f"{owner}.{part}" for part in OPTIONAL if f"{owner}.{part}" in names}
        wanted = [scale] if leaf == "weight" else [scale, f"{owner}.weight_shape"]
        check_there(files, [name, *wanted], names)
        parts = [name, *wanted, *(held[part] for part in OPTIONAL[:2] if part in held)]
        found[f"{owner}.weight"] = CompressedWeight(
            tuple(parts), (scale,), held.get("weight_zero_point"), held.get("weight_g_idx"),
            wanted[1] if len(wanted) > 1 else None, sizes, blocks, bits,
            fixed=no_scale_to_fold(files, [scale]), input_scale=held.get("input_scale"),
        )  # fmt: skip
    return found
