"""The proof that a fold is exact, layer by layer, before anything is written."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunecomp.checkpoint.fold import FoldPlan, fold_tensor
from prunecomp.errors import FoldError
from prunecomp.model.decoder import Decoder, LayerArguments, apply_seam, call_layer
from prunecomp.model.stack import LayerStack

ROWS = 64
"""Tokens a layer is proved on: one short window, so that attention mixes rows too."""

EXACT_TOLERANCE = 1e-4
"""For rows that are large beside any norm's epsilon, only rounding is left: norms and rotary embeddings of
transformers compute in float32 (2**-24) whatever the weights are, and the softmax and the sums of a layer amplify that
by a factor of a few hundred at most."""

EPSILON_TOLERANCE = 2.0**-4
"""On real rows as they are, the epsilon of the norms shows where the stream is small (the paper's form scales the early
stream). Past this share of what a layer writes, the folded model is no longer the one that was measured."""

LARGE_RMS = 100.0


@dataclass(frozen=True)
class LayerProof:
    """Relative errors of ``g(a x) = a f(x)`` for a layer f, its folded self g and a stream scale a.

    ``random_error`` and ``real_error`` are on rows raised to a size at which no epsilon counts; ``epsilon_error`` is on
    the real rows as they are.
    """

    layer: int
    stream_scale: float
    random_error: float
    real_error: float
    epsilon_error: float


def prove_fold(decoder: Decoder, stack: LayerStack, plan: FoldPlan, tokens: torch.Tensor) -> list[LayerProof]:
    """Prove every changed layer of ``plan`` on random rows and on the real stream of ``tokens`` [S].

    One layer at a time is copied in float64 (norms and rotary embeddings stay float32 inside transformers) with the
    planned factors in its tensors. Raises :class:`FoldError` naming the first layer that fails.
    """
    proofs: list[LayerProof] = []
    if not plan.stream_scales:
        return proofs
    decoder.check_plain("a fold")
    with decoder.evaluating():
        stream, arguments = decoder.enter(tokens[:ROWS].unsqueeze(0))
        walk = decoder.weights.walk([(layer,) for layer in stack.alive])
        for (layer,), seam in zip(walk, stack.seams, strict=True):
            x = apply_seam(stream, seam)
            if layer in plan.stream_scales:
                proofs.append(_prove_layer(decoder, plan, layer, x, arguments))
            stream = decoder.call(layer, x, arguments, stack.overlays.get(layer))
    return proofs


def _prove_layer(
    decoder: Decoder, plan: FoldPlan, layer: int, real: torch.Tensor, arguments: LayerArguments
) -> LayerProof:
    scale = plan.stream_scales[layer]
    original = _in_float64(decoder.layers[layer])
    prefix = f"{decoder.family.layers}.{layer}."
    for name, parameter in original.named_parameters():
        if prefix + name in plan.replaced:
            parameter.data.copy_(plan.replaced[prefix + name])
    folded = copy.deepcopy(original)
    for name, parameter in folded.named_parameters():
        factor, offset = plan.factors.get(prefix + name, 1.0), plan.offsets.get(prefix + name, 0.0)
        parameter.data.copy_(fold_tensor(prefix + name, parameter.data, factor, torch.float64, offset))
    exact_arguments = _to_float64(arguments[layer])
    generator = torch.Generator().manual_seed(layer)
    random = torch.randn(real.shape, generator=generator, dtype=torch.float64).to(real.device)
    real = real.to(torch.float64)
    large = real / real.square().mean().sqrt()
    checks = (
        ("random rows", LARGE_RMS * random, EXACT_TOLERANCE),
        ("real rows made large", LARGE_RMS * large, EXACT_TOLERANCE),
        ("real rows, where the norms' epsilon counts", real, EPSILON_TOLERANCE),
    )
    errors = []
    for rows, x, tolerance in checks:
        errors.append(_relative_error(original, folded, x, scale, exact_arguments))
        if not errors[-1] <= tolerance:
            raise FoldError(
                f"layer {layer} cannot take a stream scaled by {scale:.6g}: folding changes what it writes by "
                f"{errors[-1]:.2e} on {rows} (allowed {tolerance:.0e}). Go on with --resume --fold {plan.other_form}, "
                "or run anew with --compensation none, without --fold, and another --out"
            )
    return LayerProof(layer, scale, *errors)


def _in_float64(layer: nn.Module) -> nn.Module:
    """A copy to prove with. Grouped matrix products know no float64: experts run one after another."""
    copied = copy.deepcopy(layer).to(torch.float64)
    for module in copied.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"
    return copied


def _relative_error(
    original: nn.Module, folded: nn.Module, x: torch.Tensor, scale: float, arguments: dict[str, Any]
) -> float:
    """``|g(a x) - a f(x)| / |a (f(x) - x)|`` over all rows: relative to what the layer writes, not to the stream."""
    expected = scale * call_layer(original, x, arguments)
    got = call_layer(folded, scale * x, arguments)
    wrong = float(torch.linalg.vector_norm(got - expected))
    written = float(torch.linalg.vector_norm(expected - scale * x))
    return wrong / written if written else wrong


def _to_float64(arguments: Any) -> Any:
    if isinstance(arguments, torch.Tensor):
        return arguments.double() if arguments.is_floating_point() else arguments
    if isinstance(arguments, dict):
        return {name: _to_float64(value) for name, value in arguments.items()}
    if isinstance(arguments, tuple):
        return tuple(_to_float64(value) for value in arguments)
    return arguments
