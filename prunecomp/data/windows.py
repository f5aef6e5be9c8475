"""Fixed-length windows of tokens, drawn deterministically."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prunecomp.data.sources import TokenSource
from prunecomp.errors import DataError, OptionError


@dataclass(frozen=True)
class Windows:
    """Token windows of one length: ``tokens`` is int64 [N, S]."""

    tokens: torch.Tensor
    source: str

    @property
    def count(self) -> int:
        return self.tokens.shape[0]

    @property
    def seqlen(self) -> int:
        return self.tokens.shape[1]

    @property
    def digest(self) -> str:
        """SHA-256 over shape and token ids (little-endian int64): equal digests mean equal windows."""
        head = f"{self.count}x{self.seqlen}:".encode()
        return hashlib.sha256(head + self.tokens.numpy().astype("<i8").tobytes()).hexdigest()

    def chunks(self, size: int) -> Iterator[torch.Tensor]:
        """Micro-batches of at most ``size`` windows, in order."""
        yield from self.tokens.split(size)


def default_seqlen(config: Any) -> int:
    """The smaller of 2,048 and the context the model was trained for."""
    return min(2048, int(getattr(config, "max_position_embeddings", None) or 2048))


def draw_windows(source: TokenSource, samples: int, seqlen: int, seed: int) -> Windows:
    """Draw ``samples`` windows of ``seqlen`` tokens.

    Windows do not overlap where the source is long enough for that many disjoint ones; a shorter source is sampled
    with overlap. A 2-D source is taken as it stands. Raises :class:`DataError` if it is too short for one window.
    """
    if source.tokens.ndim == 2:
        if 0 in source.tokens.shape or source.tokens.shape[1] < 2:
            raise DataError(f"{source.name}: windows of shape {source.tokens.shape} hold nothing to run")
        return Windows(torch.from_numpy(np.ascontiguousarray(source.tokens)), source.name)
    if samples < 1 or seqlen < 2:
        raise OptionError(f"--samples {samples} --seqlen {seqlen}: at least one window of two tokens is needed")
    usable = int(len(source.tokens) * source.share)
    if usable < seqlen:
        raise DataError(
            f"{source.name} gives {usable} tokens, too short for one window of {seqlen}: "
            "give more text or a smaller --seqlen"
        )
    random = np.random.default_rng(seed)
    disjoint = usable // seqlen
    if disjoint >= samples:
        offset = int(random.integers(0, usable - disjoint * seqlen + 1))
        starts = offset + seqlen * np.sort(random.choice(disjoint, size=samples, replace=False))
    else:
        starts = np.sort(random.integers(0, usable - seqlen + 1, size=samples))
    stacked = np.stack([source.tokens[start : start + seqlen] for start in starts])
    return Windows(torch.from_numpy(stacked), source.name)


def consecutive_windows(source: TokenSource, seqlen: int) -> Windows:
    """Non-overlapping windows from the first token on; a remainder is dropped (the usual perplexity protocol)."""
    if source.tokens.ndim == 2:
        return draw_windows(source, source.tokens.shape[0], seqlen, seed=0)
    count = len(source.tokens) // seqlen
    if count == 0:
        raise DataError(
            f"{source.name} gives {len(source.tokens)} tokens, too short for one window of {seqlen}: "
            "give more text or a smaller --seqlen"
        )
    return Windows(torch.from_numpy(source.tokens[: count * seqlen].reshape(count, seqlen).copy()), source.name)
