"""What the layers of a model take, one by one, while it reads a text and while it writes: measured on this machine."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import fsum
from statistics import median
from typing import Any

import torch

from prunecomp.engine.progress import Progress, silent
from prunecomp.errors import OptionError
from prunecomp.model.decoder import Decoder

REPEATS = 5
"""Texts that are read after one to warm up."""
STEPS = 8
"""Tokens that are written after each, the first of them to warm up."""


@dataclass(frozen=True)
class Latency:
    """Seconds of each layer of the dense model, by original index: the median of repeats, over all layers that are
    alike, for a clock tells them apart where nothing else does."""

    prefill: list[float]
    """For ``tokens`` at once, in one sequence."""
    decode: list[float]
    """For one token after them, from the cache."""
    tokens: int

    def ratio(self, alive: Collection[int]) -> float:
        """Of the layers that stay to all: the larger of that of reading and that of writing, to nine digits: 24 of 30
        that are alike are 0.8."""
        return round(max(share(self.prefill, alive), share(self.decode, alive)), 9)

    @property
    def assumed(self) -> bool:
        """Whether nothing was measured, and layers that differ may take other shares of the time."""
        return not self.tokens and len(set(self.prefill)) > 1


def share(seconds: list[float], alive: Collection[int]) -> float:
    """Of the layers ``alive`` in the whole."""
    return fsum(seconds[layer] for layer in alive) / fsum(seconds)


def assumed(decoder: Decoder) -> Latency:
    """Before anything can be measured: as many seconds as parameters. Where layers are alike, :meth:`Latency.ratio` is
    the measured one's."""
    sizes = [float(sum(p.numel() for p in layer.parameters())) for layer in decoder.layers]
    return Latency(sizes, sizes, 0)


def measure_latency(decoder: Decoder, tokens: torch.Tensor, progress: Progress = silent) -> Latency:
    """Read the first of ``tokens``, int64 [S], with all layers in place, then write a few, again and again.

    No embedding, head or sampling is in it, and ``torch.compile`` is not used. Raises :class:`OptionError` for a model
    that keeps no cache.
    """
    times: list[list[float]] = [[] for _ in decoder.layers]
    prefill, decode = defaultdict[Hashable, list[float]](list), defaultdict[Hashable, list[float]](list)
    kinds = [kind_of(decoder, layer) for layer in range(decoder.num_layers)]
    text = tokens[None, : max(1, len(tokens) - STEPS)].to(decoder.device)  # positions may end with the window

    def note(into: dict[Hashable, list[float]], counts: bool) -> None:
        for kind, spent in zip(kinds, times, strict=True):
            into[kind] += [fsum(spent)] * counts
            spent.clear()

    stage = progress("measuring latency", 1 + REPEATS, "texts")
    with decoder.evaluating(), _timed(decoder, times), stage as advance:
        for repeat in range(1 + REPEATS):
            cache = decoder.backbone(input_ids=text, use_cache=True).past_key_values
            if cache is None:
                raise OptionError("--target latency: this model keeps no cache to write from; give another goal")
            note(prefill, repeat > 0)
            for step in range(STEPS):
                decoder.backbone(input_ids=text[:, -1:], past_key_values=cache, use_cache=True)
                note(decode, repeat > 0 and step > 0)
            advance(1)
    reading, writing = ([median(spent[kind]) for kind in kinds] for spent in (prefill, decode))
    return Latency(reading, writing, text.shape[1])


def kind_of(decoder: Decoder, layer: int) -> Hashable:
    """The same for layers that are alike: of one class, shapes and place in the config's lists."""
    module = decoder.layers[layer]
    lists = [getattr(decoder.config, name, None) for name in decoder.family.layer_lists]
    shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
    return type(module), shapes, tuple(one[layer] for one in lists if one)


@contextmanager
def _timed(decoder: Decoder, times: list[list[float]]) -> Iterator[None]:
    """Within, every call of a layer adds its seconds to its ``times``."""
    began = 0.0

    def now() -> float:
        if decoder.device.type == "cuda":
            torch.cuda.synchronize(decoder.device)
        return time.perf_counter()

    def begin(*_: Any) -> None:
        nonlocal began
        began = now()

    hooks = []
    for layer, spent in zip(decoder.layers, times, strict=True):
        hooks += [
            layer.register_forward_pre_hook(begin),
            layer.register_forward_hook(lambda *_, spent=spent: spent.append(now() - began)),
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
