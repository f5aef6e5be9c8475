"""An export read back before it gets its name: every tensor, the names and shapes, and what the model computes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunecomp.checkpoint.proof import LayerProof
from prunecomp.errors import CheckpointError, NumericalError, OutputError
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families
from prunecomp.model.loader import ATTENTIONS, load_decoder, read_config
from prunecomp.model.quantised import NARROW, dequantised
from prunecomp.model.stack import LayerStack
from prunecomp.model.stored import under_model_names
from prunecomp.model.weights import SafetensorsCheckpoint

WINDOWS = 2
TOKENS = 64
"""What the logits are compared on: enough rows for attention to mix, few enough to cost little beside reading."""

ROUNDINGS_A_LAYER = 10
AMPLIFICATION = 4.0
"""A layer rounds about ten times on its way (norms, products, softmax, sums, and each folded weight once); errors of
random sign add like the square root of their number, and norms and the softmax raise them by a factor of a few."""

LARGEST_TOLERANCE = 0.25
"""A wrong layer or order moves logits by about their own size: no depth or dtype needs more than this."""


@dataclass(frozen=True)
class Verification:
    """What was read back, and how far its logits are from the seam model's, in the 2-norm; of a model with experts for
    the median token."""

    tensors: int
    logits_error: float
    tolerance: float
    windows: int
    tokens: int


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of dtype, shape and bytes. Bytes and not values: NaN payloads and negative zeros count."""
    digest = hashlib.sha256(f"{tensor.dtype}:{list(tensor.shape)}:".encode())
    flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest.update(flat)
    return digest.hexdigest()


def verify_export(
    folder: Path,
    meant: Mapping[str, str],
    decoder: Decoder,
    stack: LayerStack,
    proofs: Sequence[LayerProof],
    tokens: torch.Tensor,
) -> Verification:
    """Hold the checkpoint in ``folder`` to the digests ``meant`` by name, and to the seam model on ``tokens`` [N, S].

    The written layers are streamed one at a time, so that a model that barely fits can be verified too. Raises
    :class:`OutputError`.
    """
    try:
        written = SafetensorsCheckpoint(folder)
        verify_tensors(written, meant)
        _verify_names(written, folder)
        tokens = tokens[:WINDOWS, :TOKENS]
        error = _logits_error(folder, decoder, stack, tokens)
    except (CheckpointError, NumericalError) as problem:
        raise OutputError(f"the export does not read back: {problem}") from problem
    tolerance = allowed_error(len(stack.alive), _coarsest(written, decoder.dtype), proofs)
    if not error <= tolerance:
        raise OutputError(
            f"the export does not compute what was measured: its logits are off by {error:.2e} of their size "
            f"(allowed {tolerance:.2e}); nothing was left there. Try the other --fold, or another --dtype; "
            "--no-verify writes it all the same"
        )
    return Verification(len(meant), error, tolerance, *tokens.shape)


def verify_tensors(written: SafetensorsCheckpoint, meant: Mapping[str, str]) -> None:
    """Raise :class:`OutputError` naming the first tensor that is missing, unasked for or not as it was meant."""
    held = set(written.names())
    for name in sorted(held ^ set(meant)):
        raise OutputError(f"{name} is {'missing from' if name in meant else 'not meant to be in'} the export")
    for name, digest in meant.items():
        if tensor_digest(written.read(name)) != digest:
            raise OutputError(
                f"{written.location(name).name}: {name} does not read back as it was written: is the disk sound?"
            )


def _verify_names(written: SafetensorsCheckpoint, folder: Path) -> None:
    """No tensor is of a layer that the config lacks; that none is missing, loading tells."""
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


def _logits_error(folder: Path, decoder: Decoder, stack: LayerStack, tokens: torch.Tensor) -> float:
    """``|exported - seam model| / |seam model|`` over all logits; in a model with experts the median over tokens of
    the same, for a router near a tie sends a token elsewhere after one rounding."""
    attention = str(decoder.config._attn_implementation)
    name = str(decoder.dtype).removeprefix("torch.")
    exported = load_decoder(
        folder,
        dtype=name,
        device=str(decoder.device),
        group_size=1,
        attention=attention if attention in ATTENTIONS else "auto",
    )
    with decoder.evaluating(), exported.evaluating():
        expected = decoder.run(stack, tokens)
        got = exported.run(LayerStack.dense(len(stack.alive)), tokens)
        wrong, size = [], []
        for ours, theirs in zip(got, expected, strict=True):  # a window at a time: logits are wide
            reference = decoder.logits(theirs).double()
            wrong.append((exported.logits(ours).double() - reference).square().sum(dim=-1))
            size.append(reference.square().sum(dim=-1))
    squares = torch.stack([torch.cat(wrong), torch.cat(size)])  # [2, tokens]
    if not _has_experts(decoder):
        squares = squares.sum(dim=1, keepdim=True)
    return float((squares[0] / squares[1].clamp(min=torch.finfo(torch.float64).tiny)).sqrt().median())


def _has_experts(decoder: Decoder) -> bool:
    return any("experts." in name for layer in decoder.layers for name, _ in layer.named_parameters())


def allowed_error(layers: int, dtype: torch.dtype, proofs: Sequence[LayerProof]) -> float:
    """Rounding in the coarser of the stored and the compute dtype, and what the proofs measured for the epsilons.

    One rounding is at most ``eps / 2``.
    """
    rounding = AMPLIFICATION * math.sqrt(ROUNDINGS_A_LAYER * layers) * torch.finfo(dtype).eps / 2
    return min(rounding + AMPLIFICATION * sum(proof.epsilon_error for proof in proofs), LARGEST_TOLERANCE)


def _coarsest(written: SafetensorsCheckpoint, compute: torch.dtype) -> torch.dtype:
    """Of what a fold rounds to, and of float32, in which norms and rotary embeddings of transformers compute whatever
    the weights are. Quantised values are copied, and their scales have a dtype of their own."""
    dtypes = {written.dtype(name) for name in written.names() if written.is_floating_point(name)} - NARROW
    return max({torch.float32, compute, *dtypes}, key=lambda dtype: torch.finfo(dtype).eps)
