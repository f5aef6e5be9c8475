"""Weights times their gradients, layer by layer from the top, from the states that a forward pass has left behind.

A backward pass through a whole model holds every layer's weights, gradients and activations. Here a layer is run again
from its stored input, with gradients enabled, for one micro-batch after the other; what is handed down is the gradient
at one boundary of all windows. So one layer's weights, gradients and sums are there at a time, and a model that does
not fit is streamed from the top down.

States that were not kept are run again, a stretch at a time: from the nearest one below, keeping as many on the way as
there is room for once those above have served (:func:`prunecomp.engine.retention.reversal`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call
from torch.nn import functional

from prunecomp.data.windows import Batch
from prunecomp.engine.losses import LOGITS, whole_tiles
from prunecomp.engine.parallel import total, world_size
from prunecomp.engine.placement import Demand, ModelShape
from prunecomp.engine.progress import Advance
from prunecomp.engine.retention import reversal
from prunecomp.engine.run import WORK_UNIT, CalibrationShard, Run, check_capacity
from prunecomp.errors import NumericalError
from prunecomp.model.decoder import Decoder, apply_seam, call_layer
from prunecomp.model.stack import LayerStack
from prunecomp.ops import weight_salience

GRADIENT = -2
"""The key under which a store holds the gradient at the boundary that was reached: it has a place like any state."""


def saliences(run: Run, layers: Collection[int], counted: Callable[[str], bool]) -> dict[int, float]:
    """For each of ``layers`` (original indices of survivors) the sum over its weights of ``|sum_n w * dloss_n / dw|``.

    loss_n is the mean next-token cross entropy of sequence n in the seam model, over all sequences of ``run.current``;
    weights are the parameters whose name within the layer is ``counted``, an overlay's where it stands in for the
    layer's own. Gradients of activations are in the compute dtype, sums over sequences in float32 (float64 for a
    float64 model). Layers below the lowest one are not differentiated. With several processes all get the same bits.

    A layer run again, for its gradients or for a state that was not kept, counts as a forward of its windows. The
    backward through it, twice the work of a forward, is not counted. Raises :class:`NumericalError` for a sum that is
    not finite.
    """
    run.decoder.check_plain("the metric taylor")
    stack, shards = run.stack, run.current
    lowest, top = min(stack.position(layer) for layer in layers), len(stack.alive) - 1
    for shard in shards:
        _make_room(run, shard, lowest)
    # A power of two, so that nothing is rounded: with mean losses, float16 would lose small gradients.
    boost = float(2 ** (run.windows.seqlen - 1).bit_length())
    found: dict[int, float] = {}
    steps = (top - lowest + 1) * sum(shard.windows.count for shard in shards)
    progress = run.progress("gradients", steps, WORK_UNIT)
    with run.decoder.evaluating(), progress as advance:
        for high, low in _stretches(run, shards, lowest):
            downwards = [(layer,) for layer in reversed(stack.alive[low : high + 1])]
            for p, (layer,) in zip(range(high, low - 1, -1), run.decoder.weights.walk(downwards), strict=True):
                one = _Layer.of(run.decoder, stack, p, counted if layer in layers else lambda name: False)
                for shard in shards:
                    with same_bits(run.decoder.device):  # states that are run again are those that a sweep has kept
                        _descend(shard, one, p == top, p > lowest, boost, advance)
                if layer in layers:
                    found[layer] = one.salience() / boost
                del one  # before the next layer's weights and sums are made
    for shard in shards:
        shard.states.drop(GRADIENT)
    return {layer: found[layer] for layer in stack.alive if layer in found}


@contextmanager
def same_bits(device: torch.device) -> Iterator[None]:
    """Have a GPU's backward add in one order; what was asked before comes back. What cannot do so warns, and cuDNN's
    attention is left out. flash-attn's own kernels are asked by its users alone, with FLASH_ATTENTION_DETERMINISTIC=1.
    """
    if device.type != "cuda":
        yield
        return
    asked, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills, with_cudnn = memory.fill_uninitialized_memory, torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    if not asked:
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = False  # a write of all memory, for reads that nobody does
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=warns)
        memory.fill_uninitialized_memory = fills
        torch.backends.cuda.enable_cudnn_sdp(with_cudnn)


def strict_attention(y: torch.Tensor) -> None:
    """Have the attention in the graph of ``y`` add in one order when it is differentiated, where that is asked for.

    PyTorch's flash and memory-efficient kernels do so where nothing else is allowed, and only warn where a warning is
    enough, as it must be for the rest of a layer: so what is asked is made stricter for as long as they run.
    """
    if not (torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()):
        return
    nodes, seen = [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        if "DotProduct" in type(node).__name__:
            node.register_prehook(lambda *_: torch.use_deterministic_algorithms(True))
            node.register_hook(lambda *_: torch.use_deterministic_algorithms(True, warn_only=True))


@dataclass
class _Layer:
    """A survivor while it is differentiated."""

    decoder: Decoder
    index: int
    """Among the original layers."""
    seam: float
    tensors: dict[str, torch.Tensor]
    """All parameters, cut off from the caller's: his flags are neither read nor touched."""
    weights: dict[str, torch.Tensor]
    """Those of them whose gradients are asked for."""
    sums: dict[str, torch.Tensor]
    """Of weight times gradient."""
    absolute: dict[str, torch.Tensor]
    """Of the absolute values of these sums, so far."""

    @classmethod
    def of(cls, decoder: Decoder, stack: LayerStack, p: int, counted: Callable[[str], bool]) -> _Layer:
        index = stack.alive[p]
        tensors = {name: parameter.detach() for name, parameter in decoder.layers[index].named_parameters()}
        overlay = stack.overlays.get(index)
        if overlay is not None:
            on_device = overlay.on(decoder.device, decoder.dtype)
            tensors |= {name: tensor.detach() for name, tensor in on_device.items()}
        weights = {name: tensor.requires_grad_() for name, tensor in tensors.items() if counted(name)}
        sums = {
            name: torch.zeros(w.shape, dtype=torch.promote_types(w.dtype, torch.float32), device=w.device)
            for name, w in weights.items()
        }
        return cls(decoder, index, stack.seams[p], tensors, weights, sums, {})

    def run(self, batch: Batch, x: torch.Tensor) -> torch.Tensor:
        """The layer with gradients enabled, never compiled: a graph would be made for this alone."""
        arguments = self.decoder.arguments(batch)[self.index]
        module = self.decoder.layers[self.index]
        with torch.enable_grad():
            return call_layer(
                lambda stream, **given: functional_call(module, self.tensors, (stream,), given), x, arguments
            )

    def differentiate(
        self, batch: Batch, state: torch.Tensor, upstream: Callable[[torch.Tensor], torch.Tensor], pass_on: bool
    ) -> torch.Tensor | None:
        """Add a micro-batch, whose stored input is ``state`` [B, S, d], to the sums.

        ``upstream`` gives the gradient at the layer's output from that output. Returns the gradient at ``state``, if it
        is to be passed on.
        """
        x = apply_seam(state, self.seam).detach()
        wanted = [*self.weights.values(), *([x.requires_grad_()] if pass_on else [])]
        y = self.run(batch, x)
        strict_attention(y)
        # A weight that no token of the micro-batch is sent through, as an expert's, has no gradient.
        gradients = torch.autograd.grad(y, wanted, upstream(y.detach()), allow_unused=True)
        for (name, w), g in zip(self.weights.items(), gradients, strict=False):
            if g is not None:
                self.absolute[name] = weight_salience(w.detach(), g, self.sums[name])
        return apply_seam(gradients[-1], self.seam) if pass_on else None

    def salience(self) -> float:
        """Over all sequences of all processes."""
        if world_size() > 1:  # absolute values are taken of whole sums alone
            self.absolute = {name: total(own).abs().sum(dtype=torch.float64) for name, own in self.sums.items()}
        value = float(sum(map(float, self.absolute.values())))
        if not value < float("inf"):
            raise NumericalError(
                f"layer {self.index}: its gradients are not finite; where it computes in float16, use float32 or "
                "bfloat16."
            )
        return value


def _descend(
    shard: CalibrationShard, layer: _Layer, is_top: bool, pass_on: bool, boost: float, advance: Advance
) -> None:
    """Take a shard's gradient down through a layer."""
    decoder, states = layer.decoder, shard.states
    for batch in shard.sweeper.batches:
        state = states.get(layer.index, batch) if layer.index in states.kept else decoder.enter(batch)[0]

        def upstream(y: torch.Tensor, batch: Batch = batch) -> torch.Tensor:
            return head_gradient(decoder, batch, y, boost) if is_top else states.get(GRADIENT, batch)

        gradient = layer.differentiate(batch, state, upstream, pass_on)
        if gradient is not None:
            states.put(GRADIENT, batch, gradient)
        shard.sweeper.count(batch.count)
        advance(batch.count)


def head_gradient(decoder: Decoder, batch: Batch, stream: torch.Tensor, boost: float = 1.0) -> torch.Tensor:
    """Gradient of the micro-batch's losses, each ``boost`` times the mean over its sequence's predicted tokens, at what
    leaves the last layer: [B, S, d], or [1, T, d] packed, like ``stream``. Logits are made for some rows at a time."""
    rows, targets, shares = predictions(batch)
    flat, gradient = stream.flatten(0, 1), torch.zeros_like(stream.flatten(0, 1))
    rows_at_once = head_rows(decoder.config.vocab_size)
    for some, wanted, share in zip(*(each.split(rows_at_once) for each in (rows, targets, shares)), strict=True):
        x = flat[some.to(flat.device)].detach().requires_grad_()
        with torch.enable_grad():
            logits = decoder.logits(x)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            each = functional.cross_entropy(logits, wanted.to(logits.device), reduction="none")
            weighted = (each * (boost * share).to(each)).sum()
        gradient[some.to(flat.device)] = torch.autograd.grad(weighted, x)[0]
    return gradient.view_as(stream)


def predictions(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows of a micro-batch's B * S (or T) that predict a token, the tokens that they predict, and the share of
    each in the mean of its sequence: int64, int64 and float64 [R]. Padding is in none of them."""
    seqlen = batch.tokens.shape[1]
    lengths = batch.each_length
    starts = [sum(lengths[:n]) if batch.packed else n * seqlen for n in range(batch.count)]
    rows = torch.cat([start + torch.arange(n - 1) for start, n in zip(starts, lengths, strict=True)])
    shares = torch.cat([torch.full((n - 1,), 1.0 / (n - 1), dtype=torch.float64) for n in lengths])
    return rows, batch.tokens.flatten()[rows + 1], shares


def head_rows(vocab_size: int) -> int:
    """Rows of logits at once: a quarter of what a forward pass allows itself, since logits, their float32 copy and the
    gradients of both are there together."""
    return whole_tiles(LOGITS // 4 // vocab_size)


def _make_room(run: Run, shard: CalibrationShard, lowest: int) -> None:
    """Give up kept states for the gradient's place, and those that the way down does not set out from."""
    alive, states = run.stack.alive, shard.states
    if len(alive) > 1:
        check_capacity(states.budget, run.placement, run.decoder.device)
        wanted = reversal(0, lowest, len(alive) - 1, states.budget - 1)
        states.retain([GRADIENT, *(alive[p] for p in wanted if alive[p] in states.kept)])


def _stretches(run: Run, shards: list[CalibrationShard], lowest: int) -> Iterator[tuple[int, int]]:
    """Neighbouring positions, (highest, lowest), from the top down, whose states are all there when they are given.

    They are filled in between stretches, not within: a walk over the weights must have ended before the next begins.
    """
    alive, high = run.stack.alive, len(run.stack.alive) - 1
    while high >= lowest:
        for shard in shards:
            _fill(run, shard, lowest, high)
        low = high
        while low > lowest and (low == 1 or all(alive[low - 1] in shard.states.kept for shard in shards)):
            low -= 1
        yield high, low
        high = low - 1


def _fill(run: Run, shard: CalibrationShard, lowest: int, high: int) -> None:
    """Have the state at position ``high``, and states below it as far as there is room, those above given up."""
    alive, states = run.stack.alive, shard.states
    if high == 0 or alive[high] in states.kept:
        return
    start = run.nearest_state(shard, high - 1)
    below = [layer for layer in alive[1 : start + 1] if layer in states.kept]
    room = states.budget - 1 - len(below)
    states.retain([GRADIENT, *below, *(alive[p] for p in reversal(start, lowest, high, room))])

    def finish(batch: Batch, stream: torch.Tensor) -> None:
        states.put(alive[high], batch, stream)

    shard.sweeper.sweep(run.stack.below(high), start, states, finish=finish)


def backward_demand(shape: ModelShape) -> Demand:
    """What :func:`saliences` takes beside a forward pass: the gradient at one boundary; one layer's gradients and sums;
    and, for a micro-batch, what its layer saves for the backward, and some rows of logits and their gradients."""
    weights = shape.layer_nbytes // shape.itemsize * (shape.itemsize + max(4, shape.itemsize))
    vocab_size = shape.outer_nbytes // (shape.hidden_size * shape.itemsize)  # twice that where the head is not tied

    def nbytes(num_tokens: int) -> int:
        logits = min(num_tokens, head_rows(vocab_size)) * vocab_size * 2 * (shape.itemsize + max(4, shape.itemsize))
        return weights + 3 * shape.activation_nbytes(num_tokens) + logits

    return Demand(nbytes, boundaries=1)
