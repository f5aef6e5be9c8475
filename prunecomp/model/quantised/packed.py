"""GPTQ and AWQ: integers packed into int32 words, a zero and a scale a group of inputs.

Both store the weight with its inputs first, [in, out], and mean ``scale * (q - zero)``. GPTQ packs neighbouring inputs
into a word, and its zeros along the outputs; its version 1 stores each zero less one. Of a zero of 0, which a group
without negative weights alone has, readers differ: AutoGPTQ's older kernel wraps it around, as is done here, others
read the largest number plus one. AWQ packs neighbouring outputs, in an order that suits its kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunecomp.errors import CheckpointError
from prunecomp.model.quantised.stored import (
    Settings,
    StoredWeight,
    check_dtype,
    check_there,
    in_order,
    no_scale_to_fold,
    pieces,
    unpack,
)
from prunecomp.model.weights import StoredTensors

GPTQ_BITS = (2, 4, 8)
"""Those that fill a word without straddling two; three bits are packed in another way."""

AWQ_BITS = 4
AWQ_SHIFTS = tuple(4 * place for place in (0, 4, 1, 5, 2, 6, 3, 7))
"""Where each of eight neighbouring outputs lies in its word: words hold them in the order 0, 2, 4, 6, 1, 3, 5, 7."""


@dataclass(frozen=True)
class PackedIntegers(StoredWeight):
    """``qweight``, ``qzeros`` [G, out / p] and ``scales`` [G, out], with ``g_idx`` [in] where groups are not in order.

    With ``bits`` the inputs are packed, ``qweight`` is [in / p, out] and zeros are stored less ``offset``; without it
    the outputs are, in AWQ's order: [in, out / 8].
    """

    group_size: int
    bits: int | None
    offset: int = 0

    def shape(self, files: StoredTensors) -> tuple[int, ...]:
        rows, columns = files.shape(self.parts[0])
        if self.bits is None:
            return columns * len(AWQ_SHIFTS), rows
        return columns, rows * (32 // self._bits(files))

    def _bits(self, files: StoredTensors) -> int:
        """Of GPTQ: what ``g_idx`` leaves possible, for rules may give modules other bits than the config."""
        assert self.bits is not None
        if len(self.parts) < 4:
            return self.bits
        words, inputs = files.shape(self.parts[0])[0], files.shape(self.parts[3])[0]
        bits, rest = divmod(32 * words, inputs)
        if rest or bits not in GPTQ_BITS:
            raise CheckpointError(
                f"{files.location(self.parts[0])}: {self.parts[0]} has {words} words for {inputs} inputs, which is "
                f"{32 * words / inputs:g} bits; {', '.join(map(str, GPTQ_BITS))} are read"
            )
        return bits

    def read(self, files: StoredTensors) -> torch.Tensor:
        words, scales = files.read(self.parts[0]), files.read(self.parts[2]).float()
        outputs, inputs = self.shape(files)
        zeros = self._zeros(files, scales)
        group = self._groups(files, inputs, len(scales))
        weight = torch.empty(outputs, inputs)
        per_word = 1 if self.bits is None else inputs // len(words)
        for rows in pieces(inputs, outputs, per_word):
            part = words[rows.start // per_word : rows.stop // per_word]
            values = unpack(part, AWQ_SHIFTS) if self.bits is None else unpack(part.T, in_order(32 // per_word)).T
            picked = group[rows]
            weight[:, rows] = ((values.float() - zeros[picked]) * scales[picked]).T
        return weight

    def _zeros(self, files: StoredTensors, scales: torch.Tensor) -> torch.Tensor:
        """Float32 [G, out]."""
        words = files.read(self.parts[1])
        bits = None if self.bits is None else self._bits(files)
        zeros = unpack(words, AWQ_SHIFTS if bits is None else in_order(bits))
        if bits is not None and self.offset:
            zeros = (zeros + self.offset) & (2**bits - 1)
        if zeros.shape[0] != scales.shape[0] or zeros.shape[1] < scales.shape[1]:
            raise CheckpointError(
                f"{files.location(self.parts[1])}: {self.parts[1]} holds {list(zeros.shape)} zeros for "
                f"{list(scales.shape)} scales"
            )
        return zeros[:, : scales.shape[1]].float()

    def _groups(self, files: StoredTensors, inputs: int, groups: int) -> torch.Tensor:
        """The group of each input, int64 [in]."""
        if len(self.parts) > 3:
            index = files.read(self.parts[3]).long()
            known = bool(((index >= 0) & (index < groups)).all()) and len(index) == inputs
            # A file that leaves the index at zero means groups in order.
            if known and (groups == 1 or bool(index.any())):
                return index
            if not known:
                raise CheckpointError(
                    f"{files.location(self.parts[3])}: {self.parts[3]} names groups that {self.parts[2]} lacks"
                )
        size = inputs if self.group_size <= 0 else self.group_size
        if -(-inputs // size) != groups:
            raise CheckpointError(
                f"{files.location(self.parts[2])}: {self.parts[2]} has {groups} groups; {inputs} inputs in groups of "
                f"{size} have {-(-inputs // size)}"
            )
        return torch.arange(inputs) // size


def check_gptq(stated: Settings, where: str) -> None:
    """Raise :class:`CheckpointError` for a variant that is not read."""
    if stated.get("bits") not in GPTQ_BITS:
        raise CheckpointError(
            f"{where}: GPTQ in {stated.get('bits')} bits is not read; {', '.join(map(str, GPTQ_BITS))} are. Prune the "
            "checkpoint it was made from, and quantise that"
        )
    kind = _gptq_format(stated)
    if kind not in ("gptq", "gptq_v2") or stated.get("is_marlin_format"):
        raise CheckpointError(
            f"{where}: GPTQ in the format {'marlin' if stated.get('is_marlin_format') else kind} is not read; gptq and "
            "gptq_v2 are. Prune a checkpoint in one of these"
        )
    if stated.get("pack_dtype", "int32") not in ("int32", "torch.int32"):
        raise CheckpointError(f"{where}: GPTQ packed into {stated['pack_dtype']} is not read; int32 is")


def _gptq_format(stated: Settings) -> str:
    return str(stated.get("checkpoint_format") or stated.get("format") or "gptq").lower()


def check_awq(stated: Settings, where: str) -> None:
    """Raise :class:`CheckpointError` for a variant that is not read."""
    version = str(stated.get("version") or stated.get("checkpoint_format") or stated.get("format") or "gemm").lower()
    if version != "gemm" or stated.get("backend") == "llm-awq":
        raise CheckpointError(
            f"{where}: AWQ in the version {'llm-awq' if version == 'gemm' else version} is not read; gemm is. Prune a "
            "checkpoint in that version, or the one it was made from"
        )
    bits = stated.get("bits", stated.get("w_bit", AWQ_BITS))
    if bits != AWQ_BITS:
        raise CheckpointError(f"{where}: AWQ in {bits} bits is not read; {AWQ_BITS} are")


def gptq_weights(files: StoredTensors, stated: Settings) -> dict[str, StoredWeight]:
    """Every GPTQ weight by the model's name."""
    offset = 0 if _gptq_format(stated) == "gptq_v2" else 1
    return _packed(files, int(stated.get("group_size", 128)), int(stated["bits"]), offset)


def awq_weights(files: StoredTensors, stated: Settings) -> dict[str, StoredWeight]:
    """Every AWQ weight by the model's name."""
    return _packed(files, int(stated.get("group_size", stated.get("q_group_size", 128))), None, 0)


def _packed(files: StoredTensors, group_size: int, bits: int | None, offset: int) -> dict[str, StoredWeight]:
    names = set(files.names())
    found: dict[str, StoredWeight] = {}
    for name in files.names():
        owner, _, leaf = name.rpartition(".")
        if leaf != "qweight":
            continue
        parts = [name, f"{owner}.qzeros", f"{owner}.scales"]
        check_there(files, parts, names)
        for part in parts[:2]:
            check_dtype(files, part, {torch.int32})
        index = f"{owner}.g_idx"
        if index in names and bits is not None:
            parts.append(index)
        fixed = no_scale_to_fold(files, parts[2:3])
        found[f"{owner}.weight"] = PackedIntegers(tuple(parts), (parts[2],), group_size, bits, offset, fixed=fixed)
    return found
