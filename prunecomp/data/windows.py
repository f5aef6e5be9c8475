"""Fixed-length windows of tokens, drawn deterministically."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from prunecomp.data.sources import DocumentSource, TokenSource
from prunecomp.errors import DataError, OptionError


@dataclass(frozen=True)
class Batch:
    """Windows that run together."""

    rows: slice
    """Which windows of the set."""
    tokens: torch.Tensor
    """int64 [B, S], or [1, T] if packed: sequences end to end in one row, without padding."""
    lengths: torch.Tensor | None
    """[B] int64: tokens of each sequence, where they are not all S."""
    packed: bool
    first_token: int
    """Rows of the residual stream in the batches before this one."""

    @property
    def count(self) -> int:
        return self.rows.stop - self.rows.start  # type: ignore[no-any-return]

    @property
    def each_length(self) -> list[int]:
        """Tokens of each sequence."""
        return [self.tokens.shape[1]] * self.count if self.lengths is None else self.lengths.tolist()

    @property
    def positions(self) -> torch.Tensor | None:
        """[1, T] int64, from 0 in each sequence; None where the model's own are right."""
        if not self.packed or self.lengths is None:
            return None
        return torch.cat([torch.arange(int(length)) for length in self.lengths]).unsqueeze(0)

    def sequences(self, stream: torch.Tensor) -> list[torch.Tensor]:
        """A packed stream [1, T, d] as one view [1, length, d] a sequence."""
        assert self.lengths is not None
        return list(stream.split(self.each_length, dim=1))


@dataclass(frozen=True)
class Windows:
    """Token windows: ``tokens`` is int64 [N, S]. With ``lengths`` [N], only the first so many of a row are real."""

    tokens: torch.Tensor
    source: str
    lengths: torch.Tensor | None = None

    @property
    def count(self) -> int:
        return self.tokens.shape[0]

    @property
    def seqlen(self) -> int:
        """Tokens of the longest window."""
        return self.tokens.shape[1]

    @property
    def num_tokens(self) -> int:
        return self.tokens.numel() if self.lengths is None else int(self.lengths.sum())

    @property
    def digest(self) -> str:
        """SHA-256 over shape and token ids (little-endian int64): equal digests mean equal windows."""
        head = f"{self.count}x{self.seqlen}:".encode()
        digest = hashlib.sha256(head + self.tokens.numpy().astype("<i8").tobytes())
        if self.lengths is not None:
            digest.update(self.lengths.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def take(self, rows: slice) -> Windows:
        """Some of the windows, in order."""
        return Windows(self.tokens[rows], self.source, None if self.lengths is None else self.lengths[rows])

    def shuffled(self, seed: int) -> Windows:
        """The same windows in a random order."""
        order = torch.from_numpy(np.random.default_rng(seed).permutation(self.count))
        return Windows(self.tokens[order], self.source, None if self.lengths is None else self.lengths[order])

    def batches(self, size: int, packed: bool = False, kind: Callable[[int], Hashable] | None = None) -> list[Batch]:
        """Micro-batches of at most ``size`` windows, in order; where ``kind`` is given, of lengths of one kind.

        Windows of different lengths are cut to the longest of their batch, or laid end to end if ``packed``. Padding
        stands on the right, where causal attention keeps it from every real token: no mask is needed.
        """
        batches: list[Batch] = []
        first = start = 0
        while start < self.count:
            rows = slice(start, min(start + size, self.count))
            if kind is not None and self.lengths is not None:
                _, alike = next(groupby(self.lengths[rows].tolist(), key=kind))
                rows = slice(start, start + len(list(alike)))
            start = rows.stop
            tokens, lengths = self.tokens[rows], None if self.lengths is None else self.lengths[rows]
            if lengths is not None and packed:
                tokens = torch.cat([row[:n] for row, n in zip(tokens, lengths.tolist(), strict=True)]).unsqueeze(0)
            elif lengths is not None:
                tokens = tokens[:, : int(lengths.max())]
            batches.append(Batch(rows, tokens, lengths, packed and lengths is not None, first))
            first += tokens.numel()
        return batches


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
        return _as_windows(source)
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


def _as_windows(source: TokenSource) -> Windows:
    """A 2-D source as it stands; negative ids at the end of a row are padding, and make it shorter."""
    tokens = torch.from_numpy(np.ascontiguousarray(source.tokens))
    padding = tokens < 0
    if not bool(padding.any()):
        return Windows(tokens, source.name)
    lengths = (~padding).sum(dim=1)
    if bool((padding != (torch.arange(tokens.shape[1]) >= lengths.unsqueeze(1))).any()):
        raise DataError(f"{source.name}: negative ids are padding and must stand at the end of a row")
    if int(lengths.min()) < 2:
        raise DataError(f"{source.name}, row {int(lengths.argmin())}: a window needs at least two tokens")
    return Windows(tokens.clamp(min=0)[:, : int(lengths.max())], source.name, lengths)


def draw_documents(source: DocumentSource, samples: int, seqlen: int, seed: int) -> Windows:
    """Draw ``samples`` documents, each cut at ``seqlen`` tokens, the longest first so that batches pad little.

    Raises :class:`DataError` if fewer have two tokens.
    """
    usable = [document[:seqlen] for document in source.documents if len(document) >= 2]
    if len(usable) < samples:
        raise DataError(
            f"{source.name} has {len(usable)} documents of two tokens or more, fewer than --samples {samples}"
        )
    chosen = np.sort(np.random.default_rng(seed).choice(len(usable), size=samples, replace=False))
    documents = sorted((usable[i] for i in chosen), key=lambda document: -len(document))
    lengths = torch.tensor([len(document) for document in documents])
    tokens = torch.zeros(samples, int(lengths[0]), dtype=torch.int64)
    for row, document in zip(tokens, documents, strict=True):
        row[: len(document)] = torch.from_numpy(document)
    return Windows(tokens, source.name, None if bool((lengths == lengths[0]).all()) else lengths)


def consecutive_windows(source: TokenSource, seqlen: int) -> Windows:
    """Non-overlapping windows from the first token on, as many as the source says or all; a remainder is dropped (the
    usual perplexity protocol)."""
    if source.tokens.ndim == 2:
        return draw_windows(source, source.tokens.shape[0], seqlen, seed=0).take(slice(source.windows))
    count = len(source.tokens) // seqlen
    if source.windows is not None:
        count = min(count, source.windows)
    if count == 0:
        raise DataError(
            f"{source.name} gives {len(source.tokens)} tokens, too short for one window of {seqlen}: "
            "give more text or a smaller --seqlen"
        )
    return Windows(torch.from_numpy(source.tokens[: count * seqlen].reshape(count, seqlen).copy()), source.name)
