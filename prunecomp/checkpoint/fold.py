"""Folding seams into weights: which tensor is multiplied by what, in either of two equal forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from prunecomp.errors import FoldError
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.model.weights import all_finite

T = TypeVar("T")


@dataclass(frozen=True)
class FoldPlan:
    """What folding does, before it is done.

    ``factors`` maps a tensor's name (original numbering) to the number it is multiplied by, ``replaced`` to the tensor
    that is multiplied in its stead. A norm gain stored as ``g - offset`` has its offset in ``offsets``: what is
    multiplied is ``g``. ``stream_scales`` maps each changed layer to the scale that its stream has in the folded model,
    relative to the seam model.
    """

    form: str
    renumber: dict[int, int]
    factors: dict[str, float] = field(default_factory=dict)
    stream_scales: dict[int, float] = field(default_factory=dict)
    replaced: dict[str, torch.Tensor] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)

    @property
    def other_form(self) -> str:
        """The form to try where this one will not do."""
        return "up" if self.form == "down" else "down"

    def stored_under(self, stored: Callable[[str], Sequence[str]]) -> FoldPlan:
        """The same plan for a checkpoint, by the names of the tensors that hold what the model has under one."""

        def moved(values: Mapping[str, T]) -> dict[str, T]:
            return {part: value for name, value in values.items() for part in stored(name)}

        return replace(self, factors=moved(self.factors), offsets=moved(self.offsets), replaced=moved(self.replaced))

    def changes(self, name: str) -> bool:
        """Whether a tensor is not written as it is stored."""
        return name in self.factors or name in self.replaced

    def folded(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What is written for a stored tensor: the product in float32 or better, rounded once to its dtype."""
        work = self.replaced.get(name, tensor).to(tensor.device)
        return fold_tensor(name, work, self.factors.get(name, 1.0), tensor.dtype, self.offsets.get(name, 0.0))


def plan_fold(decoder: Decoder, stack: LayerStack, form: str = "up") -> FoldPlan:
    """Plan how the seams of ``stack`` go into the weights (Prune&Comp, section 4, gives the ``down`` form).

    ``up`` divides the writers above each seam by the seams below them and leaves everything else as it was. ``down``
    multiplies the writers below, and the embedding, by the seams above them; under a tied head the final norm's gain
    and bias are divided by the total, because the head is scaled with the embedding.
    """
    plan = FoldPlan(form, {layer: number for number, layer in enumerate(stack.alive)})
    for layer, overlay in stack.overlays.items():
        prefix = f"{decoder.family.layers}.{layer}." if layer < stack.num_layers else ""
        plan.replaced.update({f"{prefix}{name}": tensor for name, tensor in overlay.tensors.items()})
    if form == "up":
        scales = [1.0 / product for product in stack.seam_product_below()]
    else:
        scales = list(stack.seam_product_above())
    for layer, scale in zip(stack.alive, scales, strict=True):
        if scale != 1.0:
            plan.stream_scales[layer] = scale
            plan.factors.update(dict.fromkeys(decoder.writer_tensors(layer), scale))
            plan.factors.update(dict.fromkeys(decoder.raw_reader_tensors(layer), 1.0 / scale))
    total = stack.seam_product()
    if form == "down" and total != 1.0:
        family = decoder.family
        for owner in family.embeddings:
            plan.factors.update(dict.fromkeys(_own_parameters(decoder, owner), total))
        if decoder.tied:
            if not _own_parameters(decoder, family.final_norm):
                raise FoldError(
                    "the head is tied to the embedding and the final norm has no gain to divide: go on with --resume "
                    "--fold up"
                )
            plan.factors[f"{family.head}.weight"] = total
            plan.factors.update(dict.fromkeys(_own_parameters(decoder, family.final_norm), 1.0 / total))
    if decoder.family.gain_offset:
        gains = (
            name for name in plan.factors if name.endswith("weight") and decoder.model.get_parameter(name).ndim == 1
        )
        plan.offsets.update(dict.fromkeys(gains, decoder.family.gain_offset))
    return plan


def _own_parameters(decoder: Decoder, owner: str) -> list[str]:
    return [f"{owner}.{name}" for name, _ in decoder.model.get_submodule(owner).named_parameters(recurse=False)]


def fold_tensor(
    name: str, tensor: torch.Tensor, factor: float, dtype: torch.dtype, offset: float = 0.0
) -> torch.Tensor:
    """``(offset + tensor) * factor - offset`` in float32 (float64 for float64), rounded once to ``dtype``.

    Raises :class:`FoldError` where the product leaves the range of that dtype.
    """
    work = torch.promote_types(tensor.dtype, torch.float32)
    scaled = tensor.to(work) * factor
    folded = (scaled + offset * (factor - 1.0) if offset else scaled).to(dtype)
    if not all_finite(folded):
        raise FoldError(
            f"{name} times {factor:.6g} overflows {dtype}: go on with --resume and the other --fold, or store the "
            "model in bfloat16 or float32 first"
        )
    return folded
