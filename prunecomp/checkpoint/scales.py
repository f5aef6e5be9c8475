"""Folding into quantised weights: the factor goes to the scales, in which the weight is linear."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from prunecomp.checkpoint.fold import FoldPlan
from prunecomp.errors import FoldError
from prunecomp.model.decoder import Decoder
from prunecomp.model.quantised.stored import Dequantised
from prunecomp.model.weights import TensorSource

Stored = Callable[[str], Sequence[str]]
"""From a name in the model to the names of the weights that hold it in the files."""


def plan_as_stored(plan: FoldPlan, decoder: Decoder, plain: TensorSource, stored: Stored) -> FoldPlan:
    """``plan`` for the tensors that files hold, which ``plain`` presents as weights.

    A fused tensor's factor goes to all its parts, that of a quantised weight to its scales, and its values are copied:
    what is rounded is the scale, once, to its own dtype. Raises :class:`FoldError` for a quantised weight that would
    have to be replaced, or has no scale that can be multiplied, and for activations quantised with a stored scale where
    layers read the stream past their norms.
    """
    plan = plan.stored_under(stored)
    if not isinstance(plain, Dequantised):
        return plan
    check_replaced(plan.replaced, plain)
    factors = dict(plan.factors)
    changed = plain.weights.keys() & factors.keys()
    measured = sorted(name for name, weight in plain.weights.items() if weight.input_scale is not None)
    if changed and measured and decoder.family.raw_readers:
        raise FoldError(
            f"{plain.location(measured[0])}: the input of {measured[0]} is quantised with a scale that was measured, "
            f"and in {decoder.family.name} a fold changes the size of what layers read. Use --compensation none, or "
            "prune the checkpoint it was made from"
        )
    for name in changed:
        weight, factor = plain.weights[name], factors.pop(name)
        if weight.fixed is not None:
            raise FoldError(
                f"{plain.location(name)}: {name} is quantised and cannot be multiplied: {weight.fixed}. Use "
                "--compensation none, or prune the checkpoint it was made from"
            )
        factors.update(dict.fromkeys(weight.scales, factor))
    return replace(plan, factors=factors)


def check_replaced(names: Collection[str], plain: TensorSource) -> None:
    """Raise :class:`FoldError` if any of the weights ``names`` is quantised: a new weight would be quantised anew."""
    for name in sorted(names):
        if isinstance(plain, Dequantised) and name in plain.weights:
            raise FoldError(
                f"{plain.location(name)}: {name} is quantised ({plain.method}), and a repair would put another "
                "weight in its place, which would have to be quantised anew. Use --repair none or auto, or "
                "prune the checkpoint it was made from"
            )


def check_repair(decoder: Decoder, plain: TensorSource, stored: Stored, replaces: bool) -> None:
    """Raise :class:`FoldError` before any work if some layer could not take a scale, or with ``replaces`` a new weight.

    ``decoder`` may be on the meta device. Which layers will have to is not known yet, so all are looked at.
    """
    layers = range(decoder.num_layers)
    writers = [name for layer in layers for name in decoder.writer_tensors(layer)]
    readers = [name for layer in layers for name in decoder.raw_reader_tensors(layer)]
    plan = FoldPlan("up", {layer: layer for layer in layers}, factors=dict.fromkeys([*writers, *readers], 1.0))
    plan_as_stored(plan, decoder, plain, stored)
    if replaces:
        replaced = tuple(f".{path}.weight" for path in (*decoder.family.mlp_writers, decoder.family.writers[0]))
        check_replaced([part for name in writers if name.endswith(replaced) for part in stored(name)], plain)
