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
    "fp8-blocks": Variant({"quant_method": "fp8", "weight_block_size": [8, 16], "fmt": "e4m3"},
                          fp8((8, 16)), "weight_scale_inv"),
    "fp8-ragged": Variant({"quant_method": "fp8", "weight_block_size": [32, 20], "activation_scheme": "dynamic"},
                          fp8((32, 20)), "weight_scale_inv"),
    "fp8-tensor": Variant({"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"},
                          fp8(None), "weight_scale_inv"),
    "fp8-rows": Variant({"quant_method": "fp8", "weight_block_size": None}, fp8(None, per_row=True),
                        "weight_scale_inv"),
}  # fmt: skip

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def gptq(bits: int, group: int, version: int = 1, shuffled: bool = False, index: bool = True) -> Make:
    """``qweight[i / p, o]`` holds p inputs, the first lowest; ``qzeros[g, o / p]`` p outputs, in version 1 less one."""

    def make(outputs: int, inputs: int, generator: torch.Generator) -> Made:
        size = inputs if group == -1 else group
        groups = -(-inputs // size)
        p = 32 // bits
        q, zero = integers((inputs, outputs), bits, generator), integers((groups, outputs), bits, generator)
        spread = 1.5 / inputs**0.5 / 2**bits
        scales = uniform((groups, outputs), 0.5 * spread, 2 * spread, generator).half()
        order = torch.randperm(inputs, generator=generator).tolist() if shuffled else list(range(inputs))
        of = [order[i] // size for i in range(inputs)]
        s = scales.double().tolist()
        less = 1 if version == 1 else 0
        stored = {
            "qweight": torch.tensor(
                [[word([q[i + k][o] for k in range(p)], bits) for o in range(outputs)] for i in range(0, inputs, p)],
                dtype=torch.int32,
            ),
            "qzeros": torch.tensor(
                [
                    [word([(z[o + k] - less) % 2**bits for k in range(p)], bits) for o in range(0, outputs, p)]
                    for z in zero
                ],
                dtype=torch.int32,
            ),
            "scales": scales,
            **({"g_idx": torch.tensor(of, dtype=torch.int32)} if index else {}),
        }
        return Made(stored, grid(outputs, inputs, lambda o, i: s[of[i]][o] * (q[i][o] - zero[of[i]][o])))

    return make


def awq(group: int) -> Make:
    """``qweight[i, o / 8]`` and ``qzeros[g, o / 8]``: nibble k of a word is output ``AWQ_ORDER[k]`` of its eight."""

    def make(outputs: int, inputs: int, generator: torch.Generator) -> Made:
        size = inputs if group == -1 else group
        groups = -(-inputs // size)
        q, zero = integers((inputs, outputs), 4, generator), integers((groups, outputs), 4, generator)
        spread = 1.5 / inputs**0.5 / 16
        scales = uniform((groups, outputs), 0.5 * spread, 2 * spread, generator).half()
        s = scales.double().tolist()

        def packed(rows: list[list[int]]) -> torch.Tensor:
            return torch.tensor(
                [[word([row[o + k] for k in AWQ_ORDER], 4) for o in range(0, outputs, 8)] for row in rows],
                dtype=torch.int32,
            )

        stored = {"qweight": packed(q), "qzeros": packed(zero), "scales": scales}
        return Made(stored, grid(outputs, inputs, lambda o, i: s[i // size][o] * (q[i][o] - zero[i // size][o])))

    return make


def _gptq_config(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": False, **more}


GPTQ = {
    "gptq-4": Variant(_gptq_config(4, 16), gptq(4, 16), "scales"),
    "gptq-4-ragged-v2": Variant(_gptq_config(4, 32, checkpoint_format="gptq_v2"), gptq(4, 32, 2), "scales"),
    "gptq-4-columns": Variant(_gptq_config(4, -1, checkpoint_format="gptq"), gptq(4, -1, index=False), "scales"),
    "gptq-4-shuffled": Variant(_gptq_config(4, 16, desc_act=True), gptq(4, 16, shuffled=True), "scales"),
    "gptq-8": Variant(_gptq_config(8, 16), gptq(8, 16, index=False), "scales"),
    "gptq-2": Variant(_gptq_config(2, 16), gptq(2, 16), "scales",
                      options={"hidden_size": 64, "num_key_value_heads": 2}),
    "gptq-mixed": Variant(_gptq_config(4, 16, dynamic={"+:.*": {"bits": 8}}), gptq(8, 16), "scales"),
}  # fmt: skip

AWQ = {
    "awq": Variant({"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True},
                   awq(16), "scales"),
    "awq-columns": Variant({"quant_method": "awq", "bits": 4, "group_size": -1, "version": "GEMM"}, awq(-1), "scales",
                           case="llama-tied-biased"),
}  # fmt: skip


def compressed(
    bits: int, group: int, dtype: torch.dtype, packed: bool = True, symmetric: bool = True, shuffled: bool = False
) -> Make:
    """Integers from -2^(b-1): packed along the inputs with 2^(b-1) added, zero points along the outputs likewise."""

    def make(outputs: int, inputs: int, generator: torch.Generator) -> Made:
        size = inputs if group == -1 else group
        groups, half, p = inputs // size, 2 ** (bits - 1), 32 // bits
        q = [[x - half for x in row] for row in integers((outputs, inputs), bits, generator)]
        zero = [[0 if symmetric else x - half for x in row] for row in integers((outputs, groups), bits, generator)]
        spread = 1.5 / inputs**0.5 / 2**bits
        scales = uniform((outputs, groups), 0.5 * spread, 2 * spread, generator).to(dtype)
        order = torch.randperm(inputs, generator=generator).tolist() if shuffled else list(range(inputs))
        of = [order[i] // size for i in range(inputs)]
        s = scales.double().tolist()

        def words(numbers: list[int]) -> list[int]:
            return [word([x + half for x in numbers[i : i + p]], bits) for i in range(0, len(numbers), p)]

        stored = {"weight_scale": scales}
        if packed:
            stored["weight_packed"] = torch.tensor([words(row) for row in q], dtype=torch.int32)
            stored["weight_shape"] = torch.tensor([outputs, inputs])
        else:
            stored["weight"] = torch.tensor(q, dtype=torch.int8)
        if not symmetric and packed:
            columns = [words([row[g] for row in zero]) for g in range(groups)]
            stored["weight_zero_point"] = torch.tensor(columns, dtype=torch.int32).T.contiguous()
        elif not symmetric:
            stored["weight_zero_point"] = torch.tensor(zero, dtype=torch.int8)
        if shuffled:
            stored["weight_g_idx"] = torch.tensor(of, dtype=torch.int32)
        return Made(stored, grid(outputs, inputs, lambda o, i: s[o][of[i]] * (q[o][i] - zero[o][of[i]])))

    return make


def _compressed_config(name: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, **weights}}
    return {"quant_method": "compressed-tensors", "format": name, "quantization_status": "compressed",
            "config_groups": {"group_0": group}, "ignore": ["lm_head"]}  # fmt: skip


COMPRESSED = {
    "compressed-fp8-rows": Variant(
        _compressed_config("float-quantized", num_bits=8, type="float", strategy="channel"),
        fp8(None, "weight_scale", per_row=True), "weight_scale"),
    "compressed-fp8-tensor": Variant(
        _compressed_config("float-quantized", num_bits=8, type="float", strategy="tensor"),
        fp8(None, "weight_scale"), "weight_scale"),
    "compressed-fp8-blocks": Variant(
        _compressed_config("float-quantized", num_bits=8, type="float", strategy="block", block_structure=[32, 20]),
        fp8((32, 20), "weight_scale"), "weight_scale"),
    "compressed-int8": Variant(
        _compressed_config("int-quantized", num_bits=8, strategy="channel"),
        compressed(8, -1, torch.bfloat16, packed=False), "weight_scale", case="llama-tied-biased"),
    "compressed-int8-zeros": Variant(
        _compressed_config("naive-quantized", num_bits=8, strategy="group", group_size=16, symmetric=False),
        compressed(8, 16, torch.float32, packed=False, symmetric=False), "weight_scale"),
    "compressed-int4": Variant(
        _compressed_config("pack-quantized", num_bits=4, strategy="group", group_size=16),
        compressed(4, 16, torch.float16), "weight_scale"),
    "compressed-int4-zeros": Variant(
        _compressed_config("pack-quantized", num_bits=4, strategy="group", group_size=8, symmetric=False),
        compressed(4, 8, torch.float16, symmetric=False), "weight_scale",
        options={"intermediate_size": 72, "head_dim": 6}),
    "compressed-int4-shuffled": Variant(
        _compressed_config("pack-quantized", num_bits=4, strategy="group", group_size=16, actorder="group"),
        compressed(4, 16, torch.float16, symmetric=False, shuffled=True), "weight_scale"),
    "compressed-int8-packed": Variant(
        _compressed_config("pack-quantized", num_bits=8, strategy="channel"), compressed(8, -1, torch.bfloat16),
        "weight_scale"),
}  # fmt: skip


def four_bits(block: int, nested: bool) -> Make:
    """Two numbers a byte, the first high; a table of 16; an absmax a block of the flat weight, itself through a table
    of 256 where nested, with an absmax for each 256 and an offset."""

    def make(outputs: int, inputs: int, generator: torch.Generator) -> Made:
        count = outputs * inputs
        blocks = -(-count // block)
        (q,) = integers((1, count), 4, generator)
        table = torch.sort(uniform((16,), -1, 1, generator)).values
        size = 1.5 / inputs**0.5
        absmax = uniform((blocks,), 0.5 * size, 2 * size, generator)
        meant_absmax = absmax.double().tolist()
        state = {"quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": [outputs, inputs]}
        stored = {}
        if nested:
            codes = integers((1, blocks), 8, generator)[0]
            inner = torch.sort(uniform((256,), -1, 1, generator)).values
            outer = uniform((-(-blocks // 256),), 0.3 * size, 0.4 * size, generator)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 1.25 * size}
            # One rounding to float32 a step, as bitsandbytes has it.
            meant_absmax = [
                float(inner[code] * outer[b // 256] + state["nested_offset"]) for b, code in enumerate(codes)
            ]
            absmax = torch.tensor(codes, dtype=torch.uint8)
            stored = {"weight.nested_absmax": outer, "weight.nested_quant_map": inner}
        stored |= {
            "weight": torch.tensor([[q[i] * 16 + q[i + 1]] for i in range(0, count, 2)], dtype=torch.uint8),
            "weight.absmax": absmax,
            "weight.quant_map": table,
            "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
        }
        t = table.double().tolist()
        return Made(stored, grid(outputs, inputs, lambda i, j: _at(q, t, meant_absmax, block, i * inputs + j)))

    return make


def _at(q: list[int], table: list[float], absmax: list[float], block: int, place: int) -> float:
    return table[q[place]] * absmax[place // block]


def eight_bits(outputs: int, inputs: int, generator: torch.Generator) -> Made:
    q = [[x - 127 for x in row] for row in torch.randint(0, 255, (outputs, inputs), generator=generator).tolist()]
    size = 1.5 / inputs**0.5
    scb = uniform((outputs,), size, 3 * size, generator)
    each = (scb / 127).double().tolist()  # rounded to float32 before it multiplies
    stored = {
        "weight": torch.tensor(q, dtype=torch.int8),
        "SCB": scb,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return Made(stored, grid(outputs, inputs, lambda i, j: q[i][j] * each[i]))


BITSANDBYTES = {
    "bitsandbytes-4": Variant({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
                              four_bits(64, nested=False), "weight.absmax"),
    "bitsandbytes-8": Variant({"quant_method": "bitsandbytes", "load_in_8bit": True}, eight_bits, "SCB"),
}  # fmt: skip
NESTED = Variant({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
                 four_bits(64, nested=True), "weight.nested_absmax")  # fmt: skip

VARIANTS = {**BITSANDBYTES, **FP8, **GPTQ, **AWQ, **COMPRESSED}
