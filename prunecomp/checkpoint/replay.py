"""A model's own forward pass in float32, with layers left out, seams in place, or other weights in its modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prunecomp.model.decoder import Decoder, StandIn, apply_seam, call_layer
from prunecomp.model.rotary import RotaryEmbeddings

Weights = Callable[[str, torch.Tensor], torch.Tensor]
"""``weights(name, tensor)``: what stands in for a parameter of the model, by its name there."""


def logits_in_float32(
    decoder: Decoder,
    tokens: torch.Tensor,
    device: torch.device,
    seams: Mapping[int, float],
    weights: Weights = lambda _, tensor: tensor,
    jitter: torch.Generator | None = None,
) -> torch.Tensor:
    """Logits [N, S, vocabulary] of tokens [N, S], by the model's own forward pass and not by our taking it apart.

    The layers of ``seams`` are run, each on the stream times its seam; the others pass it on. One layer at a time is
    copied in float32, and embedding, norm and head are: the weights of ``decoder`` are not touched. With ``jitter`` the
    tokens run twice, side by side, [2 N, S, vocabulary]: the second time what each layer gives is disturbed by as much
    as its rounding does.
    """
    family = decoder.family
    owner, _, leaf = family.layers.rpartition(".")
    walk = decoder.weights.walk([(layer,) for layer in seams])

    def doing(number: int) -> Callable[..., Any]:
        def run(stream: torch.Tensor, unnamed: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if number in seams:
                next(walk)
                layer = _in_float32(decoder.layers[number], f"{family.layers}.{number}.", device, weights)
                stream = call_layer(
                    lambda x, **some: layer(x, *unnamed, **some), apply_seam(stream, seams[number]), named
                )
                if jitter is not None:
                    plain, disturbed = stream.chunk(2)
                    noise = torch.randn(disturbed.shape, generator=jitter, dtype=stream.dtype).to(stream.device)
                    stream = torch.cat([plain, disturbed * (1 + ROUNDING * noise)])
            return (stream,) if family.returns_tuple else stream

        return run

    with decoder.layers_as(()):
        outer = _in_float32(decoder.model, "", device, weights)
    outer.config.return_dict = True  # where it is not so, models of transformers cannot read their own backbone
    stand_ins = [StandIn(layer, doing(number)) for number, layer in enumerate(decoder.layers)]
    setattr(outer.get_submodule(owner), leaf, nn.ModuleList(stand_ins))
    for module in outer.modules():  # what is computed from the config is, as it is whenever a checkpoint is loaded
        if module._non_persistent_buffers_set:
            with _parameters_aside(module):
                outer._init_weights(module)
    RotaryEmbeddings(outer).release()
    try:
        with decoder.evaluating():
            outer.eval()
            given = tokens.to(device) if jitter is None else torch.cat([tokens, tokens]).to(device)
            logits: torch.Tensor = outer(input_ids=given, use_cache=False).logits
    finally:
        walk.close()
    return logits


@contextmanager
def _parameters_aside(module: nn.Module) -> Iterator[None]:
    """Have none of the parameters that are ``module``'s own be written to: Gemma's embedding has a multiplier beside
    its weights, which a model in 16 bits holds rounded."""
    held = dict(module._parameters)
    for name, parameter in held.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    try:
        yield
    finally:
        module._parameters.update(held)


ROUNDING = 2.0**-22
"""Relative, of what a layer gives: some ten roundings of float32, of random sign."""


def _in_float32(module: nn.Module, prefix: str, device: torch.device, weights: Weights) -> Any:
    """A copy with other ``weights``, to compute with in float32 on ``device``; flash-attn knows no float32."""
    made: dict[int, Any] = {}  # in the place of each parameter; made on the device, to which half as much is sent so
    for name, parameter in module.named_parameters():
        there = weights(prefix + name, parameter.detach().to(device).to(torch.float32))
        made[id(parameter)] = nn.Parameter(there, requires_grad=False)
    module = copy.deepcopy(module, made)
    for part in module.modules():
        config: Any = getattr(part, "config", None)
        if str(getattr(config, "_attn_implementation", "")).startswith("flash"):
            config._attn_implementation = "sdpa"
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"  # nor do grouped matrix products, everywhere
    return module.to(device, torch.float32)
