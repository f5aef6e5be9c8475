"""What was counted, read together: over the shards of a calibration set, and across one layer or several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch

from prunecomp.model.stack import LayerStack
from prunecomp.ops.reference import COUNTS, SUMS

COLUMNS = (*SUMS, *COUNTS, "ratio", "dead_channels")
"""What is known of a layer, sequence by sequence: what ``layer_stats`` sums and counts, and what :func:`mean_ratio`
makes of its magnitudes."""


@dataclass(frozen=True)
class LayerRecord:
    """What happens to N sequences on their way through a layer, or a block of neighbours: x enters, y leaves.

    [N] float64 on the CPU, where nothing else is said: sums over the tokens of a sequence, as
    :class:`prunecomp.ops.LayerStats` defines them.
    """

    cosine: torch.Tensor
    angular: torch.Tensor
    dot: torch.Tensor
    input_square: torch.Tensor
    input_norm: torch.Tensor
    norm: torch.Tensor
    zero_rows: torch.Tensor
    """Tokens where x or y is the zero vector; of a block, those of its lowest layer."""
    ratio: torch.Tensor
    """Mean over channels of the ratio of magnitudes, y over x."""
    dead_channels: torch.Tensor
    """Channels left out of it, because x has nothing there."""
    input_magnitude: torch.Tensor
    """[N, d]: sum of |x| by channel; [N, 0] unless channels are kept."""
    magnitude: torch.Tensor
    """[N, d]: the same of y."""

    @classmethod
    def read(cls, table: torch.Tensor) -> LayerRecord:
        """From a sink's table, [N, 13 + 2 d] or [N, 13]: :data:`COLUMNS`, then magnitudes by channel, x before y."""
        columns, magnitudes = table.tensor_split([len(COLUMNS)], dim=1)
        before, after = magnitudes.chunk(2, dim=1)
        named = dict(zip(COLUMNS, columns.unbind(dim=1), strict=True))
        named |= {"input_magnitude": before, "magnitude": after}
        return cls(**{field.name: named[field.name] for field in fields(cls)})


def mean_ratio(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per sequence the mean over channels of ``after / before``, and how many channels were left out of it.

    Both [N, d] float64, sums of |x| over the tokens of a sequence (Prune&Comp, section 4). A channel whose sum below
    the layer is zero is left out.
    """
    alive = before > 0
    ratios = (after / before.masked_fill(~alive, 1.0)).masked_fill(~alive, 0.0)
    return ratios.sum(dim=1) / alive.sum(dim=1), (~alive).sum(dim=1)


class Statistics:
    """What is known of one or more shards of a calibration set, each complete for the same model, at one moment.

    ``stack`` is that model; ``tables`` hold each shard's columns by layer; ``grams`` [N, 3 or 4, M, M] are there if
    somebody asked for them, as :func:`prunecomp.engine.gram.gram_sums` takes them of the M = survivors + 1 boundaries:
    p < M - 1 is what enters the survivor at position p, before its seam; the last is what leaves the model.
    """

    def __init__(
        self,
        stack: LayerStack,
        tables: Sequence[Mapping[int, torch.Tensor]],
        tokens: Sequence[torch.Tensor],
        grams: Sequence[torch.Tensor | None] = (),
    ) -> None:
        self._stack = stack
        self._tables = [dict(table) for table in tables]
        self._grams = [gram for gram in grams if gram is not None]
        self.tokens = torch.cat(list(tokens)) if tokens else torch.zeros(0)
        """[N] int64: tokens of each sequence."""

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.sum())

    def of(self, *block: int) -> LayerRecord:
        """From what enters the lowest of the neighbouring survivors ``block``, seam included, to what leaves the
        highest, over all sequences. Across several layers this needs channels and Gram matrices to have been kept.

        Seams between the layers of the block stay on the stream when its layers go, so x is taken with them; cosine and
        angle know no seams.
        """
        low = self._record(block[0])
        if len(block) == 1:
            return low
        high = self._record(block[-1])
        p = self._stack.position(block[0])
        q = p + len(block)
        within = math.prod(self._stack.seams[p + 1 : q])
        before = low.input_magnitude * within
        cosine, angular, dot = self._gram[:, :3, p, q].unbind(1)
        return LayerRecord(
            cosine, angular, dot * self._stack.seams[p] * within, low.input_square * within**2,
            low.input_norm * within, high.norm, low.zero_rows, *mean_ratio(before, high.magnitude),
            before, high.magnitude,
        )  # fmt: skip

    def _record(self, layer: int) -> LayerRecord:
        return LayerRecord.read(torch.cat([table[layer] for table in self._tables]))

    @cached_property
    def _gram(self) -> torch.Tensor:
        if not self._grams:
            raise LookupError("no Gram matrix was taken: the metric has to ask for it")
        return torch.cat(self._grams)

    def mean(self, name: str) -> torch.Tensor:
        """[M, M] float64: the ``cosine``, or the ``angular`` distance, of each pair of boundaries, over all tokens.

        Raises :class:`LookupError` where no Gram matrix was taken.
        """
        return self._gram[:, {"cosine": 0, "angular": 1}[name]].sum(dim=0) / self.num_tokens

    def mean_cosine_along_tokens(self) -> torch.Tensor:
        """[M, M] float64: mean over sequences of the cosines that :func:`prunecomp.engine.gram.along_tokens` takes."""
        return self._gram[:, 3].mean(dim=0)

    @property
    def similarity(self) -> list[list[float]] | None:
        """The mean cosines, M x M; None where no Gram matrix was taken."""
        return self.mean("cosine").tolist() if self._grams else None
