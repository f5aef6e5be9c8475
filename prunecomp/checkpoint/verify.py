"""An export read back before it gets its name: every tensor, the names and shapes, and what the model computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunecomp.checkpoint.fold import FoldPlan
from prunecomp.checkpoint.proof import LayerProof
from prunecomp.checkpoint.replay import Weights, logits_in_float32
from prunecomp.errors import CheckpointError, NumericalError, OutputError
from prunecomp.model.checks import check_tensors
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families
from prunecomp.model.loader import build_skeleton, load_decoder, read_config
from prunecomp.model.quantised import dequantised
from prunecomp.model.quantised.stored import NARROW, Dequantised
from prunecomp.model.stack import LayerStack
from prunecomp.model.stored import under_model_names
from prunecomp.model.weights import SafetensorsCheckpoint, StoredTensors, tensor_digest

WINDOWS = 2
TOKENS = 64
"""What the logits are compared on: enough rows for attention to mix, few enough to cost little beside reading."""

ROUNDINGS_A_LAYER = 10
AMPLIFICATION = 4.0
"""A layer rounds about ten times on its way (norms, products, softmax, sums); errors of random sign add like the square
root of their number, and norms and the softmax raise them by a factor of a few."""

NOISE = 16.0
"""Of one model, the most by which its logits may be off where nothing but rounding differs, in units of what a
disturbance of the size of a rounding, behind each layer, makes of them."""

IN_FLOAT32 = 4.0
"""Roundings that a fold makes in float32 before its last one."""

LARGEST_TOLERANCE = 0.25
"""A wrong layer or order moves logits by about their own size: no depth or dtype needs more than this."""


@dataclass(frozen=True)
class Verification:
    """What was read back, and how far the export's logits are from those of the base model without its layers, with the
    seams in place; in the 2-norm, of a model with experts for the median token.

    All is computed in float32, so that no rounding of 16-bit activations hides anything. What is left is ``rounding``,
    that of the folded weights to the dtype they are stored in, of which each is checked on its own too.
    """

    tensors: int
    logits_error: float
    tolerance: float
    rounding: float
    base: str
    """Who read the base and the export: ``transformers``, or ``prunecomp`` where that cannot (a quantised model, a part
    of a multimodal one) or where memory does not hold the whole model."""
    windows: int
    tokens: int


@dataclass(frozen=True)
class Measured:
    """What an export is held to: a model as ``decoder`` ran it, ``base``, the same as its reader loads it, what
    survives of it, and how that is folded, by names of the model."""

    decoder: Decoder
    base: Decoder
    stack: LayerStack
    plan: FoldPlan
    proofs: Sequence[LayerProof]


def verify_export(
    folder: Path,
    meant: Mapping[str, str],
    measured: Measured,
    tokens: torch.Tensor,
    export: Callable[[Path], Any | None],
) -> Verification:
    """Hold the checkpoint in ``folder`` to the digests ``meant`` by name, and to the ``measured`` model on ``tokens``
    [N, S]. ``export`` loads the folder as transformers does, or gives None where that cannot be.

    A layer at a time is copied in float32. Raises :class:`OutputError`.
    """
    try:
        written = SafetensorsCheckpoint(folder)
        verify_tensors(written, meant)
        view = _verify_names(written, folder)
        rounded = _verify_rounding(view, measured, _coarsest(written, measured.base.dtype))
        tokens = tokens[:WINDOWS, :TOKENS]
        loaded = export(folder)
        exported = (
            load_decoder(folder, dtype="float32", device="cpu", group_size=1) if loaded is None else Decoder(loaded)
        )
        error, tolerance, rounding = _verify_logits(measured, exported, rounded, written, tokens)
    except (CheckpointError, NumericalError) as problem:
        raise OutputError(f"the export does not read back: {problem}") from problem
    reader = "prunecomp" if loaded is None else "transformers"
    return Verification(len(meant), error, tolerance, rounding, reader, *tokens.shape)


def verify_tensors(written: SafetensorsCheckpoint, meant: Mapping[str, str]) -> None:
    """Raise :class:`OutputError` naming the first tensor that is missing, unasked for or not as it was meant."""
    held = set(written.names())
    for name in sorted(held ^ set(meant)):
        raise OutputError(f"{name} is {'missing from' if name in meant else 'not meant to be in'} the export")
    with ThreadPoolExecutor() as threads:
        found = threads.map(lambda name: tensor_digest(written.read(name)), meant)
        for (name, digest), got in zip(meant.items(), found, strict=True):
            if got != digest:
                threads.shutdown(wait=False, cancel_futures=True)
                raise OutputError(
                    f"{written.location(name).name}: {name} does not read back as it was written: is the disk sound?"
                )


def _verify_names(written: SafetensorsCheckpoint, folder: Path) -> StoredTensors:
    """The export as its model sees it: no tensor is missing, and none is of a layer that the config lacks."""
    config = read_config(folder)
    family = families.find(config.model_type)
    seen = under_model_names(dequantised(written, config), family)
    prefix = f"{family.layers}."
    for name in seen.names():
        number = name.removeprefix(prefix).split(".")[0]
        if name.startswith(prefix) and number.isdigit() and int(number) >= config.num_hidden_layers:
            raise OutputError(
                f"{name} belongs to no layer of the exported config, which has {config.num_hidden_layers}"
            )
    check_tensors(build_skeleton(config, torch.float32), seen)
    return seen


def _verify_rounding(view: StoredTensors, measured: Measured, coarsest: torch.dtype) -> Weights:
    """Each survivor's tensor as it was written, by its name in the base model. As they are asked for they are held to
    what the fold makes of the base's, which they may miss by one rounding."""
    plan, layers = measured.plan, measured.decoder.family.layers
    held = set(view.names())
    tied = dict(getattr(measured.base.model, "all_tied_weights_keys", {}))
    other = {**tied, **{source: target for target, source in tied.items()}}

    def weights(name: str, base: torch.Tensor) -> torch.Tensor:
        new = next((n for n in (_renumbered(name, layers, plan.renumber), other.get(name)) if n in held), None)
        if new is None:
            raise OutputError(f"the export has no {name} of the base model")
        got = view.read(new).to(base.device).to(torch.float32)
        exact = folded_exactly(plan)(name, base)
        own, offset = view.dtype(new), abs(plan.offsets.get(name, 0.0))
        once = not isinstance(view, Dequantised) and torch.finfo(own).eps >= torch.finfo(measured.base.dtype).eps
        off_by = torch.finfo(own if once else coarsest)
        size = float(got.norm())
        allowed = (0.51 if once else 1.0) * off_by.eps * size + off_by.tiny * got.numel() ** 0.5
        allowed += IN_FLOAT32 * torch.finfo(torch.float32).eps * (size + offset * got.numel() ** 0.5)
        off = float((got - exact).norm())
        if not off <= allowed:
            raise OutputError(
                f"{new} is not {name} of the base model, folded: it is off by {off:.2e}, and rounding makes no more "
                f"than {allowed:.2e}"
            )
        return got

    return weights


def _renumbered(name: str, layers: str, renumber: Mapping[int, int]) -> str:
    """The name of a survivor's parameter under its new number; any other name as it is."""
    if not name.startswith(f"{layers}."):
        return name
    number, _, rest = name.removeprefix(f"{layers}.").partition(".")
    return f"{layers}.{renumber[int(number)]}.{rest}"


def folded_exactly(plan: FoldPlan) -> Weights:
    """The parameters of the base model as ``plan`` folds them, in float32."""

    def weights(name: str, base: torch.Tensor) -> torch.Tensor:
        if not plan.changes(name):
            return base
        work = plan.replaced.get(name, base).to(base.device, torch.float64)
        offset = plan.offsets.get(name, 0.0)
        return ((work + offset) * plan.factors.get(name, 1.0) - offset).to(torch.float32)

    return weights


def _verify_logits(
    measured: Measured, exported: Decoder, rounded: Weights, written: SafetensorsCheckpoint, tokens: torch.Tensor
) -> tuple[float, float, float]:
    """How far the export's logits are off, how far they may be, and what of it is the rounding of its weights.

    Four models stand in a row, each off from the one before by one thing alone: the seam model as it was measured; the
    same in float32, as its reader loads it; folded; with each weight rounded as it was written; and the export. Raises
    :class:`OutputError` where one is off by more than that thing makes.
    """
    decoder, base, stack, plan = measured.decoder, measured.base, measured.stack, measured.plan
    layers, experts = len(stack.alive), _has_experts(decoder)
    seams = dict(zip(stack.alive, stack.seams, strict=True))
    none = dict.fromkeys(stack.alive, 1.0)
    device = decoder.device

    def replaced(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return plan.replaced.get(name, tensor).to(tensor.device, torch.float32)

    both = logits_in_float32(base, tokens, device, seams, replaced, torch.Generator().manual_seed(0))
    seam_model, disturbed = both.chunk(2)
    noise = relative_error(disturbed, seam_model, experts)
    tight = min(max(allowed_error(layers, torch.float32), NOISE * noise), LARGEST_TOLERANCE)

    with decoder.evaluating():
        run = decoder.topped(stack).logits(decoder.run(stack, tokens))
    coarse = max(torch.finfo(decoder.dtype).eps, torch.finfo(torch.float32).eps)
    grain = max(allowed_error(layers, decoder.dtype), tight * coarse / torch.finfo(torch.float32).eps)
    _hold(
        relative_error(run, seam_model, experts),
        min(grain, LARGEST_TOLERANCE),
        "the model that was measured is not the one that is loaded",
    )

    folded = logits_in_float32(base, tokens, device, none, folded_exactly(plan)) if plan.factors else seam_model
    epsilons = tight + min(NOISE * sum(proof.epsilon_error for proof in measured.proofs), LARGEST_TOLERANCE)
    _hold(
        relative_error(folded, seam_model, experts), epsilons, "the fold does not compute what was measured",
        f"Go on with --resume --fold {plan.other_form}, or ",
    )  # fmt: skip
    stored = logits_in_float32(base, tokens, device, none, rounded)
    rounding = relative_error(stored, folded, experts)
    _hold(
        rounding, max(tight, allowed_error(layers, _coarsest(written, base.dtype))),
        "rounding the folded weights to the dtype they are stored in costs too much",
        f"Go on with --resume --fold {plan.other_form}, or ",
    )  # fmt: skip
    got = logits_in_float32(exported, tokens, device, dict.fromkeys(range(layers), 1.0))
    _hold(relative_error(got, stored, experts), tight, "the export does not compute what was measured")
    return relative_error(got, seam_model, experts), 2 * tight + epsilons + rounding, rounding


def _hold(error: float, allowed: float, what: str, advice: str = "") -> None:
    if not error <= allowed:
        raise OutputError(
            f"{what}: its logits are off by {error:.2e} of their size (allowed {allowed:.2e}); nothing was left there. "
            f"{advice or 'Go on '}with --resume --no-verify to write it all the same"
        )


def relative_error(got: torch.Tensor, expected: torch.Tensor, experts: bool) -> float:
    """``|got - expected| / |expected|`` over all logits [N, S, V]; in a model with experts the median over tokens of
    the same, for a router near a tie sends a token elsewhere after one rounding."""
    wrong, size = [], []
    for ours, theirs in zip(got, expected, strict=True):  # a window at a time: logits are wide
        wrong.append((ours.double() - theirs.double()).square().sum(dim=-1))
        size.append(theirs.double().square().sum(dim=-1))
    squares = torch.stack([torch.cat(wrong), torch.cat(size)])  # [2, tokens]
    if not experts:
        squares = squares.sum(dim=1, keepdim=True)
    return float((squares[0] / squares[1].clamp(min=torch.finfo(torch.float64).tiny)).sqrt().median())


def _has_experts(decoder: Decoder) -> bool:
    return any("experts." in name for layer in decoder.layers for name, _ in layer.named_parameters())


def allowed_error(layers: int, dtype: torch.dtype) -> float:
    """What rounding to ``dtype``, or to float32, which norms and rotary embeddings of transformers compute in whatever
    the weights are, makes in so many layers. One rounding is at most ``eps / 2``."""
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    return min(AMPLIFICATION * math.sqrt(ROUNDINGS_A_LAYER * layers) * eps / 2, LARGEST_TOLERANCE)


def _coarsest(written: SafetensorsCheckpoint, compute: torch.dtype) -> torch.dtype:
    """Of what a fold rounds to, and of float32, in which norms and rotary embeddings of transformers compute whatever
    the weights are. Quantised values are copied, and their scales have a dtype of their own."""
    dtypes = {written.dtype(name) for name in written.names() if written.is_floating_point(name)} - NARROW
    return max({torch.float32, compute, *dtypes}, key=lambda dtype: torch.finfo(dtype).eps)
