"""Fixed-length windows of tokens, drawn deterministically."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunecomp.data.in_memory import as_array
from prunecomp.data.sources import DocumentSource, TokenSource, read_source
from prunecomp.data.tokens import check_tokens
from prunecomp.errors import DataError, OptionError, PrunecompWarning
from prunecomp.io.escape import one_line
from prunecomp.io.values import whole


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
    _there: dict[tuple[str, torch.device], torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def tokens_on(self, device: torch.device) -> torch.Tensor:
        """``tokens`` on a device, sent there once: the copy would wait for all that the device has to do."""
        return self._on("tokens", self.tokens, device)

    def lengths_on(self, device: torch.device) -> torch.Tensor | None:
        """``lengths`` in the same way."""
        return None if self.lengths is None else self._on("lengths", self.lengths, device)

    def _on(self, name: str, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if (name, device) not in self._there:
            self._there[name, device] = tensor.to(device)
        return self._there[name, device]

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


@dataclass(frozen=True, repr=False)
class Windows:
    """Token windows: ``tokens`` is int64 [N, S]. With ``lengths`` [N], only the first so many of a row are real."""

    tokens: torch.Tensor
    source: str
    lengths: torch.Tensor | None = None
    bos: str = "start"
    """``each`` where every window begins with the model's BOS, else ``start``."""
    drawn: bool = field(default=False, compare=False)
    """Whether they were drawn as was asked for; else they are as they were given."""
    kinds: torch.Tensor | None = None
    """[N] int64: the number of the source that each window is from, where there are several."""
    kind_names: tuple[str, ...] = ()
    """Their names."""

    @property
    def each_length(self) -> torch.Tensor:
        """[N] int64: tokens of each window."""
        return torch.full((self.count,), self.seqlen) if self.lengths is None else self.lengths

    def __repr__(self) -> str:
        return f"Windows({self.count} of {self.seqlen} tokens from {one_line(self.source)})"

    @property
    def count(self) -> int:
        return self.tokens.shape[0]

    @property
    def seqlen(self) -> int:
        """Tokens of the longest window."""
        return self.tokens.shape[1]

    @property
    def num_tokens(self) -> int:
        return int(self.each_length.sum())

    @property
    def predicted(self) -> torch.Tensor:
        """Tokens that a model predicts in each window, all but the first: [N] int64."""
        return self.each_length - 1

    @property
    def digest(self) -> str:
        """SHA-256 over shape and token ids (little-endian int64): equal digests mean equal windows."""
        head = f"{self.count}x{self.seqlen}:".encode()
        digest = hashlib.sha256(head + self.tokens.numpy().astype("<i8").tobytes())
        if self.lengths is not None:
            digest.update(self.lengths.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def by_source(self) -> list[dict[str, Any]]:
        """How much is from which source, where there are several."""
        of_kind = [torch.as_tensor(self.kinds == kind) for kind in range(len(self.kind_names))]
        return [
            {"source": name, "windows": int(those.sum()), "tokens": int(self.each_length[those].sum())}
            for name, those in zip(self.kind_names, of_kind, strict=True)
        ]

    def take(self, rows: slice | torch.Tensor) -> Windows:
        """Some of the windows, in the order of ``rows``."""
        lengths, kinds = (None if each is None else each[rows] for each in (self.lengths, self.kinds))
        return replace(self, tokens=self.tokens[rows], lengths=lengths, kinds=kinds)

    def shuffled(self, seed: int) -> Windows:
        """The same windows in a random order."""
        return self.take(torch.from_numpy(np.random.default_rng(seed).permutation(self.count)))

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


FEW = 10_000
"""Windows that a source is sampled for even where it holds fewer that differ."""


def context_of(config: Any) -> int | None:
    """The tokens that the model was trained for at once, if it says so."""
    return int(getattr(config, "max_position_embeddings", None) or 0) or None


def choose_seqlen(seqlen: int | None, config: Any) -> int:
    """``seqlen``, or if None the smaller of 2,048 and the context the model was trained for. Raises
    :class:`OptionError` for what is no length of a window."""
    if seqlen is None:
        return min(2048, context_of(config) or 2048)
    return whole("--seqlen", seqlen, 2)


def check_context(length: int, rows: int | None, context: int | None, given: bool = False) -> None:
    """Raise :class:`OptionError` for a window of ``length`` tokens where the model has a table of positions with fewer
    ``rows``; warn where positions are computed, and the ``context`` that the model was trained for is exceeded.

    ``given`` says that the windows came as such, so that ``--seqlen`` does not change them.
    """
    if rows is not None and length > rows:
        which, remedy = (f"windows of {length} tokens", ": give shorter rows") if given else (f"--seqlen {length}", "")
        raise OptionError(f"{which}: the model has positions for {rows} tokens, and no window can be longer{remedy}")
    if rows is None and context is not None and length > context:
        warnings.warn(
            f"windows of {length} tokens are longer than the {context} that the model was trained for "
            "(max_position_embeddings): what is measured is the model out of its range; give "
            f"{'shorter rows' if given else 'a smaller --seqlen'}",
            PrunecompWarning,
            stacklevel=2,
        )


def draw_windows(source: TokenSource, samples: int, seqlen: int, seed: int, room: int | None = None) -> Windows:
    """Draw ``samples`` windows of ``seqlen`` tokens.

    Windows do not overlap where the source is long enough for that many disjoint ones; a shorter source is sampled
    with overlap. A 2-D source is taken as it stands. Raises :class:`DataError` if it is too short for one window, and
    :class:`OptionError` for more windows than it can be meant to give, or than fit in ``room`` bytes.
    """
    if source.tokens.ndim == 2:
        return _as_windows(source)
    whole("--samples", samples, 1)
    whole("--seqlen", seqlen, 2)
    usable, cut = int(len(source.tokens) * source.share), cut_length(source, seqlen)
    if usable < cut:
        raise DataError(
            f"{source.name} gives {usable} tokens, too short for one window of {seqlen}: "
            "give more text or a smaller --seqlen"
        )
    disjoint, differing = usable // cut, usable - cut + 1
    if samples > max(FEW, differing):
        raise OptionError(
            f"--samples {samples}: {source.name} gives {usable} tokens, which make {disjoint} windows of {seqlen} that "
            f"do not overlap, and {differing} that differ: give at most {max(FEW, differing)}"
        )
    if room is not None and samples * seqlen * source.tokens.itemsize > room:
        raise OptionError(
            f"--samples {samples} --seqlen {seqlen}: these windows take {samples * seqlen * source.tokens.itemsize:,} "
            f"bytes, and {room:,} are free: give at most --samples {room // (2 * seqlen * source.tokens.itemsize)}"
        )
    random = np.random.default_rng(seed)
    if disjoint >= samples:
        offset = int(random.integers(0, usable - disjoint * cut + 1))
        starts = offset + cut * np.sort(random.choice(disjoint, size=samples, replace=False))
    else:
        warnings.warn(
            f"{source.name} gives {usable:,} tokens, and --samples {samples} of --seqlen {seqlen} take "
            f"{samples * cut:,}: windows overlap, and each token is used {samples * cut / usable:.1f} times on "
            f"average. Give more text, or at most --samples {disjoint}",
            PrunecompWarning,
            stacklevel=2,
        )
        starts = np.sort(random.integers(0, usable - cut + 1, size=samples))
    return begun(np.stack([source.tokens[start : start + cut] for start in starts]), source)


def cut_length(source: TokenSource, seqlen: int) -> int:
    """Tokens of the source in a window of ``seqlen``."""
    return seqlen if source.bos is None else seqlen - 1


def begun(rows: np.ndarray, source: TokenSource) -> Windows:
    """Windows [N, S] of rows that were cut from the source."""
    if source.bos is not None:
        rows = np.insert(rows, 0, source.bos, axis=1)
    return Windows(torch.from_numpy(rows), source.name, bos=_bos(source), drawn=True)


def _bos(source: TokenSource | DocumentSource) -> str:
    return "start" if source.bos is None else "each"


def loose_windows(tokens: Any, vocab_size: int, context: int | None) -> Windows:
    """Token ids [N, S] as windows, or [T] as a single one, which then must not exceed the ``context``. Raises
    :class:`DataError` for what is neither, and :class:`OptionError` for a single one that is too long."""
    if isinstance(tokens, Windows):
        check_tokens(as_array(tokens.tokens), tokens.source, vocab_size)
        return tokens
    if isinstance(tokens, str | Path):
        raise DataError(f"{tokens}: give token ids [N, S] or [T], not a path")
    source = read_source(tokens, None, vocab_size)
    if source.tokens.ndim == 1:
        if context is not None and len(source.tokens) > context:
            raise OptionError(
                f"{len(source.tokens)} token ids in a row are one window, and the model was trained for {context}: cut "
                "them into windows [N, S]"
            )
        source = replace(source, tokens=source.tokens[None])
    return _as_windows(source)


def _as_windows(source: TokenSource) -> Windows:
    """A 2-D source as it stands; negative ids at the end of a row are padding, and make it shorter."""
    if 0 in source.tokens.shape or source.tokens.shape[1] < 2:
        raise DataError(f"{source.name}: windows of shape {source.tokens.shape} hold nothing to run")
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
    """Draw ``samples`` documents, each cut at ``seqlen`` tokens, the longest first so that batches pad little. A
    warning says so where there are fewer, and all are taken. Raises :class:`DataError` if none has two tokens."""
    usable = _usable(source, seqlen)
    if len(usable) < samples:
        warnings.warn(
            f"{source.name} has {len(usable)} documents of two tokens or more, fewer than --samples {samples}: each is "
            "taken once",
            PrunecompWarning,
            stacklevel=2,
        )
        samples = len(usable)
    chosen = np.sort(np.random.default_rng(seed).choice(len(usable), size=samples, replace=False))
    documents = sorted((usable[i] for i in chosen), key=lambda document: -len(document))
    return _ragged(documents, source)


def every_document(source: DocumentSource, seqlen: int) -> Windows:
    """All documents in their order, each cut at ``seqlen`` tokens. Raises :class:`DataError` if none has two tokens."""
    return _ragged(_usable(source, seqlen), source)


def _usable(source: DocumentSource, seqlen: int) -> list[np.ndarray]:
    usable = [document[:seqlen] for document in source.documents if len(document) >= 2]
    if not usable:
        raise DataError(f"{source.name} has no document of two tokens or more")
    return usable


def _ragged(documents: list[np.ndarray], source: DocumentSource) -> Windows:
    lengths = torch.tensor([len(document) for document in documents])
    tokens = torch.zeros(len(documents), int(lengths.max()), dtype=torch.int64)
    for row, document in zip(tokens, documents, strict=True):
        row[: len(document)] = torch.from_numpy(document)
    even = bool((lengths == lengths[0]).all())
    return Windows(tokens, source.name, None if even else lengths, _bos(source), drawn=True)


def consecutive_windows(source: TokenSource, seqlen: int) -> Windows:
    """Non-overlapping windows from the first token on, as many as the source says or all; a remainder is dropped (the
    usual perplexity protocol)."""
    if source.tokens.ndim == 2:
        return _as_windows(source).take(slice(source.windows))
    whole("--seqlen", seqlen, 2)
    cut = cut_length(source, seqlen)
    count = len(source.tokens) // cut
    if source.windows is not None:
        count = min(count, source.windows)
    if count == 0:
        raise DataError(
            f"{source.name} gives {len(source.tokens)} tokens, too short for one window of {seqlen}: "
            "give more text or a smaller --seqlen"
        )
    return begun(source.tokens[: count * cut].reshape(count, cut).copy(), source)
