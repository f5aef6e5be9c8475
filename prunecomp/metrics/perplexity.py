"""Perplexity: what the model loses without a layer."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from prunecomp.engine.candidates import KeptStreams, leave_one_out
from prunecomp.engine.placement import Demand, ModelShape
from prunecomp.engine.run import CalibrationShard
from prunecomp.metrics.base import Candidates, Metric
from prunecomp.model.stack import LayerStack


@dataclass(frozen=True)
class _Losses:
    """Of the candidates, [N, candidates] float64, summed over each window's tokens."""

    stack: LayerStack
    candidates: tuple[int, ...]
    sums: torch.Tensor


class LeaveOneOut(Metric):
    """Next-token loss of the model without the layer, in nats a token, on the calibration windows (SLEB, arXiv
    2402.09025, section 3; Shortened LLaMA, arXiv 2402.02834, section 3.1). Its exponential is the perplexity.

    Candidates are 1..L-2 unless they are named. With ``--lookahead`` each candidate is judged with the scale of its own
    compensation in place. The statistics give ``scale``, ``norm`` and ``lsq`` for nothing; ``search`` runs layers
    for each candidate, and what a repair fits at the end is not looked ahead at.
    """

    looks_ahead = True
    ends_early = True
    reads_states = True
    adds = "a run of the layers above each candidate: half the square of their number, where none is kept"

    def __init__(self) -> None:
        self._losses: WeakKeyDictionary[CalibrationShard, _Losses] = WeakKeyDictionary()
        self._streams: WeakKeyDictionary[CalibrationShard, KeptStreams] = WeakKeyDictionary()

    def barriers(self, num_layers: int) -> set[int]:
        return {0, num_layers - 1}

    def demand(self, shape: ModelShape, span: int) -> Demand:
        """All candidates' streams of one micro-batch, and room for as many boundaries as there are candidates."""
        return Demand(lambda tokens: shape.num_layers * tokens * shape.hidden_size * shape.itemsize, shape.num_layers)

    def observe(self, candidates: Candidates, shard: CalibrationShard) -> None:
        run, layers = candidates.run, tuple(candidates.layers)
        known = self._losses.get(shard)
        if known is not None and known.stack is run.stack and known.candidates == layers:
            return
        scale = candidates.lookahead or (lambda block: 1.0)
        without = {layer: run.stack.remove(layer, scale((layer,))) for layer in layers}
        if run.caches and shard not in self._streams:
            self._streams[shard] = KeptStreams.beside(shard, run)
        sums = leave_one_out(run, shard, without, self._streams.get(shard))
        self._losses[shard] = _Losses(run.stack, layers, sums)

    def score(self, candidates: Candidates) -> dict[int, float]:
        layers, sums = self.sequence_scores(candidates)
        predicted = int(self.sequence_tokens(candidates).sum())
        return dict(zip(layers, (sums.sum(dim=0) / predicted).tolist(), strict=True))

    def sequence_scores(self, candidates: Candidates) -> tuple[list[int], torch.Tensor]:
        known = [losses for _, losses in self._counted(candidates)]
        return list(known[0].candidates), torch.cat([one.sums for one in known])

    def sequence_tokens(self, candidates: Candidates) -> torch.Tensor:
        return torch.cat([shard.all_windows.predicted for shard, _ in self._counted(candidates)])

    def _counted(self, candidates: Candidates) -> list[tuple[CalibrationShard, _Losses]]:
        """The shards whose losses are of the model as it stands. A shard can be up to date without: its own loss has
        been asked for, and nothing else of it."""
        known = [(shard, self._losses.get(shard)) for shard in candidates.run.current]
        return [(shard, one) for shard, one in known if one is not None and one.stack is candidates.stack]
