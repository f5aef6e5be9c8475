"""Rotary embeddings whose frequencies depend on how long the longest row is that they are given.

Such a type (LongRoPE with its two sets of factors, dynamic NTK) looks at the whole batch, and one of them also at what
it was given before. A row must get what it gets alone: rows run together only where they get the same frequencies, and
nothing is remembered from one call to the next.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

FIXED = frozenset({"default", "linear", "llama3", "yarn", "proportional"})
"""Types of transformers whose frequencies are set once and for all; every other one is asked."""

FREQUENCIES = "inv_freq"
CACHED = "max_seq_len_cached"


class RotaryEmbeddings:
    """The rotary embeddings of a model that look at lengths; most models have none."""

    def __init__(self, backbone: nn.Module) -> None:
        self._modules: list[Any] = [module for module in backbone.modules() if set(_types(module).values()) - FIXED]
        self._kinds: dict[int, Hashable] = {}

    @property
    def look_at_lengths(self) -> bool:
        return bool(self._modules)

    def release(self) -> None:
        """Have the next call be as the first one after loading."""
        for module in self._modules:
            for name in [name for name in vars(module) if name.endswith(CACHED)]:
                setattr(module, name, module.original_max_seq_len)
            for name, frequencies in dict(module.named_buffers(recurse=False)).items():
                prefix, original, rest = name.partition(f"original_{FREQUENCIES}")
                if original and not rest:
                    module._buffers[prefix + FREQUENCIES] = frequencies.clone()

    def kind(self, length: int) -> Hashable:
        """Equal for lengths whose rows get the same frequencies."""
        if self._modules and length not in self._kinds:
            self.release()
            found: list[Hashable] = []
            for module in self._modules:
                buffers = dict(module.named_buffers(recurse=False))
                device = next(iter(buffers.values())).device
                positions = torch.arange(length, device=device).unsqueeze(0)
                for layer_type, kind in _types(module).items():
                    if kind in FIXED:
                        continue
                    options = {} if layer_type is None else {"layer_type": layer_type}
                    turned = module(torch.empty(0, dtype=torch.float32, device=device), positions, **options)
                    # At position 1, where an angle is the frequency itself: what is compared is what layers are given.
                    parts = turned if isinstance(turned, tuple) else (turned,)
                    found += [part[0, min(1, length - 1)].cpu().numpy().tobytes() for part in parts]
            self._kinds[length] = tuple(found)
        return self._kinds.get(length)


def _types(module: Any) -> dict[str | None, str]:
    """The rope type of a module, of each kind of layer where it tells them apart."""
    stated = getattr(module, "rope_type", None)
    if isinstance(stated, dict):
        return dict(stated)
    return {None: stated} if isinstance(stated, str) else {}
