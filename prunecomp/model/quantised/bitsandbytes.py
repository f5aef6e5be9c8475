"""bitsandbytes: four bits through a table of 16 values (NF4, FP4), or int8 with one scale an output (LLM.int8).

Read here without the library: the files hold the table and all else. In four bits two neighbouring numbers share a
byte, the first in its high half; the weight is ``table[number] * absmax``, one absmax a block of the flattened weight.
Nested, the absmaxes are themselves numbers of eight bits: ``nested_table[number] * nested_absmax + offset``. In int8
the weight is ``number * SCB / 127``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from prunecomp.errors import CheckpointError
from prunecomp.model.quantised.stored import Settings, StoredWeight, check_dtype, check_there, pieces
from prunecomp.model.weights import StoredTensors

STATE = ".quant_state.bitsandbytes__"
NESTED = "its scales are quantised too (double quantisation), with an offset that is no tensor"


@dataclass(frozen=True)
class FourBits(StoredWeight):
    """``parts`` are the bytes, ``absmax``, the table and the state, and the nested absmax and table where nested."""

    def _state(self, files: StoredTensors) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(bytes(files.read(self.parts[3]).tolist()))
        return state

    def shape(self, files: StoredTensors) -> tuple[int, ...]:
        return tuple(int(extent) for extent in self._state(files)["shape"])

    def read(self, files: StoredTensors) -> torch.Tensor:
        state, shape = self._state(files), self.shape(files)
        numbers, table = files.read(self.parts[0]).flatten().view(torch.uint8), files.read(self.parts[2]).float()
        absmax, block = self._absmax(files, state), int(state["blocksize"])
        weight = torch.empty(torch.Size(shape).numel())
        for some in pieces(len(weight), 1, 2 * block):
            part = numbers[some.start // 2 : -(-some.stop // 2)]
            values = table[torch.stack([part >> 4, part & 15], dim=-1).flatten().int()][: some.stop - some.start]
            blocks = torch.arange(some.start, some.stop) // block
            torch.mul(values, absmax[blocks], out=weight[some])
        return weight.reshape(shape)

    def _absmax(self, files: StoredTensors, state: dict[str, Any]) -> torch.Tensor:
        """Float32, one a block."""
        absmax = files.read(self.parts[1])
        if len(self.parts) == 4:
            return absmax.float()
        nested, table = files.read(self.parts[4]).float(), files.read(self.parts[5]).float()
        blocks = torch.arange(absmax.numel()) // int(state["nested_blocksize"])
        return table[absmax.int()] * nested[blocks] + float(state["nested_offset"])


@dataclass(frozen=True)
class EightBits(StoredWeight):
    """``parts`` are int8 [out, in], ``SCB`` float32 [out], and a mark of the layout where there is one."""

    def read(self, files: StoredTensors) -> torch.Tensor:
        if len(self.parts) > 2 and int(files.read(self.parts[2])) != 0:
            raise CheckpointError(
                f"{files.location(self.parts[0])}: {self.parts[0]} is laid out for one kind of GPU; row by row is read"
            )
        scale = files.read(self.parts[1]).float() / 127
        return files.read(self.parts[0]).float() * scale.reshape(-1, 1)


def weights(files: StoredTensors, stated: Settings) -> dict[str, StoredWeight]:
    """Every bitsandbytes weight by the model's name."""
    names = set(files.names())
    found: dict[str, StoredWeight] = {}
    for name in files.names():
        owner, state, kind = name.partition(STATE)
        if state:
            nested = [f"{owner}.{part}" for part in ("nested_absmax", "nested_quant_map") if f"{owner}.{part}" in names]
            parts = (owner, f"{owner}.absmax", f"{owner}.quant_map", name, *nested)
            check_there(files, parts, names)
            if kind not in ("nf4", "fp4"):
                raise CheckpointError(f"{files.location(name)}: {owner} is stored as {kind}; nf4 and fp4 are read")
            check_dtype(files, parts[1], {torch.uint8} if nested else {torch.float32})
            found[owner] = FourBits(parts, () if nested else parts[1:2], fixed=NESTED if nested else None)
        elif name.endswith(".SCB"):
            owner = name.removesuffix(".SCB")
            marks = [f"{owner}.weight_format"] if f"{owner}.weight_format" in names else []
            parts = (f"{owner}.weight", name, *marks)
            check_there(files, parts, names)
            check_dtype(files, parts[0], {torch.int8})
            check_dtype(files, name, {torch.float32})
            found[f"{owner}.weight"] = EightBits(parts, (name,))
    return found
