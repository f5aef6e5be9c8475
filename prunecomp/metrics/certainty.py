"""How sure a round's choice is: its scores, sequence by sequence, drawn again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from prunecomp.metrics.base import Candidates, Metric
from prunecomp.metrics.bootstrap import Certainty, Interval, choice_certainty, score_intervals


@dataclass(frozen=True)
class SequenceScores:
    """The sums that a round's scores are made of: [N, C] float64 for N sequences and the C layers, or lowest layers of
    blocks; and the tokens of each sequence that they are over, [N]."""

    layers: list[int]
    sums: np.ndarray
    tokens: np.ndarray
    blocks: Mapping[int, tuple[int, ...]]
    seed: int

    @classmethod
    def of(cls, metric: Metric, candidates: Candidates) -> SequenceScores | None:
        """None where scores are no means over sequences, or not over those that are here, or nothing has one: too few
        neighbours are left for a block."""
        if not metric.ends_early or candidates.parity is not None or not candidates.starts():
            return None
        layers, sums = metric.sequence_scores(candidates)
        tokens = metric.sequence_tokens(candidates)
        blocks = {layer: candidates.block(layer) for layer in layers}
        return cls(layers, sums.double().numpy(), tokens.double().numpy(), blocks, candidates.seed)

    def certainty(self, block: tuple[int, ...], free: Collection[int]) -> Certainty | None:
        """Of the choice of ``block`` among those all of whose layers are ``free``; None where that was no choice of
        these scores."""
        columns = [i for i, layer in enumerate(self.layers) if set(self.blocks[layer]) <= set(free)]
        layers = [self.layers[i] for i in columns]
        if self.blocks.get(block[0]) != block or block[0] not in layers:
            return None
        return choice_certainty(layers, self.sums[:, columns], self.tokens, block[0], self.seed)

    def intervals(self, scores: Mapping[int, float]) -> dict[int, Interval]:
        """Of each layer's score, by its index."""
        means = dict(zip(self.layers, self.sums.sum(axis=0) / self.tokens.sum(), strict=True))
        found = score_intervals(self.layers, self.sums, self.tokens, self.seed)
        # What ranks the same as a score may lie apart from it by a constant.
        return {
            layer: Interval(found[layer].low + score - means[layer], found[layer].high + score - means[layer])
            for layer, score in scores.items()
        }
