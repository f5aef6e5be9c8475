"""A linear repair: what is left below the cut learns to write what the removed layers wrote.

ReplaceMe (arXiv 2505.02819) estimates one such map for one cut of the dense model; here it is fitted inside the loop,
on the states of the model as it has been repaired so far.
"""

from __future__ import annotations

import torch

from prunecomp.compensation.base import Removal, Seam, wants
from prunecomp.compensation.scale import magnitude_scale
from prunecomp.engine.regression import writer_equations
from prunecomp.errors import OptionError
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack, Overlay

RIDGE = 1.0
"""In units of the mean square of a feature. Measured on text of another domain than the calibration text, where lighter
ones lose, as does one chosen by cross-validation on the calibration text (``benchmarks/README.md``)."""


@wants(states=True, replaces=True)
def linear_map(removal: Removal) -> Seam:
    """The map T for the MLP output m of the survivor below, so that ``m T + rest`` is the stream that used to leave the
    removed layers, folded into that layer's down projection.

    With y what the layer below gives and z what left the removed layers (both before seams, z over the seams between
    them), ``T = I + D``, where D minimises ``sum |m D - (z - y)|^2`` over all tokens, each row over the root mean
    square of its z, plus a ridge that draws T to the identity (:data:`RIDGE`). Solved and folded in float64. The seams
    that were there stay.

    Where no survivor lies below the cut there is nothing to fold into, and the paper's scale is taken. Raises
    :class:`OptionError` for a family whose MLP does not end in a linear layer onto the stream.
    """
    run = removal.run
    p = run.stack.position(removal.block[0])
    if p == 0:
        seam = magnitude_scale(removal)
        return Seam(seam.scale, seam.dead_channels, chosen="scale")
    writer = run.decoder.family.mlp_writer
    if writer is None:
        raise OptionError(
            f"--compensation linear: {run.decoder.family.name} has no matrix to fold it into (experts, or a norm or a "
            "multiplier behind the MLP's last one, or one that is stored transposed); use scale, search or auto"
        )
    change = writer_equations(run, removal.block, writer).solve(RIDGE).cpu()
    below = run.stack.alive[p - 1]
    # m T = h W^T T + c T, so the weight becomes T^T W and the bias T^T c.
    standing = writer_tensors(run.decoder, run.stack, below, writer)
    tensors = {name: tensor + change.T @ tensor for name, tensor in standing.items()}
    return Seam(1.0, overlays={below: overlaid(run.stack, below, tensors)})


def writer_tensors(decoder: Decoder, stack: LayerStack, layer: int, writer: str) -> dict[str, torch.Tensor]:
    """A writer's weight and bias as they stand, float64, by their names within the layer."""
    overlay = stack.overlays.get(layer)
    names = [f"{writer}.{name}" for name, _ in decoder.layers[layer].get_submodule(writer).named_parameters()]
    prefix = f"{decoder.family.layers}.{layer}"
    return {
        name: (
            overlay.tensors[name]
            if overlay is not None and name in overlay.tensors
            else decoder.stored(f"{prefix}.{name}")
        ).double()
        for name in names
    }


def overlaid(stack: LayerStack, layer: int, tensors: dict[str, torch.Tensor]) -> Overlay:
    """The layer's overlay with some tensors put in, rounded to float32; an export rounds to what it stores."""
    before = stack.overlays.get(layer)
    kept = {} if before is None else dict(before.tensors)
    return Overlay({**kept, **{name: tensor.float() for name, tensor in tensors.items()}})
