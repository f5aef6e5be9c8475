"""What was counted, read together: over the shards of a calibration set, and across one layer or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from prunecomp.engine.sinks import LayerRecord, LayerSink, mean_ratio
from prunecomp.ops import LayerStats


@dataclass(frozen=True)
class Crossing:
    """What happens to N sequences on their way through one layer or several neighbours: x enters, y leaves.

    All [N]; sums are over the tokens of a sequence.
    """

    ratio: torch.Tensor
    """float64: mean over channels of the ratio of magnitudes, y over x."""
    dead_channels: torch.Tensor
    """int64: channels left out of it, because x has nothing there."""
    input_norm: torch.Tensor
    norm: torch.Tensor
    input_square: torch.Tensor
    dot: torch.Tensor


@dataclass(frozen=True)
class Gram:
    """Sums over the tokens of each of N sequences for all pairs of the M = survivors + 1 boundaries of a model.

    Boundary p < M - 1 is what enters the survivor at position p, before its seam; the last is what leaves the model.
    """

    cosine: torch.Tensor
    """[N, M, M] float64."""
    angular: torch.Tensor
    """[N, M, M] float64: acos of the cosine, over pi."""
    dot: torch.Tensor
    """[N, M, M] float64."""
    along_tokens: torch.Tensor | None = None
    """[N, M, M] float64, where asked for: no sum over tokens, but the mean over channels of the cosine of the two
    sequences of S values of a channel."""


class Statistics:
    """The statistics of one or more shards of a calibration set, each complete for the same model.

    ``alive`` and ``seams`` are that model's; ``grams`` are there if somebody asked for them.
    """

    def __init__(
        self,
        shards: Sequence[LayerSink],
        alive: Sequence[int],
        seams: Sequence[float],
        grams: Sequence[Gram | None] = (),
    ) -> None:
        self._parts = list(shards)
        self._alive, self._seams = list(alive), list(seams)
        self._grams = [gram for gram in grams if gram is not None]
        self.tokens = torch.cat([shard.tokens for shard in self._parts]) if self._parts else torch.zeros(0)
        """[N] int64: tokens of each sequence."""

    def as_they_are(self) -> Statistics:
        """The same, untouched by what the run that took them goes on to see."""
        return Statistics([shard.fork() for shard in self._parts], self._alive, self._seams, self._grams)

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.sum())

    def record(self, layer: int) -> LayerRecord:
        """What is known of a layer, over all sequences."""
        if len(self._parts) == 1:
            return self._parts[0].record(layer)
        records = [vars(shard.record(layer)) for shard in self._parts]
        return LayerRecord(**{name: torch.cat([record[name] for record in records]) for name in records[0]})

    def stats(self, layer: int) -> LayerStats:
        """A layer's sums over the tokens of each sequence, without the magnitudes by channel."""
        record = self.record(layer)
        none = record.sums.new_zeros(0, 0)
        return LayerStats(record.sums, record.counts, none, none)

    def zero_rows(self, layer: int) -> int:
        """Tokens at which the layer's input or output is the zero vector."""
        return int(self.stats(layer).zero_rows.sum())

    @cached_property
    def gram(self) -> Gram:
        """Of all sequences; raises :class:`LookupError` where none was taken."""
        if not self._grams:
            raise LookupError("no Gram matrix was taken: the metric has to ask for it")
        each = [vars(gram) for gram in self._grams]
        return Gram(**{k: torch.cat([one[k] for one in each]) for k, first in each[0].items() if first is not None})

    @property
    def similarity(self) -> list[list[float]] | None:
        """Mean over all tokens of the cosine of each pair of boundaries, M x M; None where no Gram matrix was taken."""
        if not self._grams:
            return None
        mean: list[list[float]] = (self.gram.cosine.sum(dim=0) / self.num_tokens).tolist()
        return mean

    def crossing(self, block: Sequence[int]) -> Crossing:
        """From what enters the lowest of the neighbouring survivors ``block``, seam included, to what leaves the
        highest. Across several layers this needs channels and the Gram matrix to have been kept.

        Seams between the layers of the block stay on the stream when its layers go, so x is taken with them.
        """
        below, above = self.record(block[0]), self.record(block[-1])
        low, high = self.stats(block[0]), self.stats(block[-1])
        if len(block) == 1:
            return Crossing(below.ratio, below.dead_channels, low.input_norm, low.norm, low.input_square, low.dot)
        p, q = self._alive.index(block[0]), self._alive.index(block[-1]) + 1
        within = math.prod(self._seams[p + 1 : q])
        ratio, dead = mean_ratio(below.input_magnitude * within, above.magnitude)
        dot = self.gram.dot[:, p, q] * self._seams[p] * within
        return Crossing(ratio, dead, low.input_norm * within, high.norm, low.input_square * within**2, dot)
