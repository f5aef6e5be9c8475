"""Perplexity: what the model loses without a layer."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from prunecomp.engine.candidates import KeptStreams, leave_one_out
from prunecomp.engine.placement import Demand, ModelShape
from prunecomp.engine.run import Part
from prunecomp.metrics.base import Evidence, Metric
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
    compensation in place. The statistics give ``scale``, ``norm`` and ``lsq`` for nothing; ``search``, ``linear`` and
    ``auto`` run layers for each candidate, and the weights that ``linear`` would replace are not looked ahead at.
    """

    looks_ahead = True
    ends_early = True
    reads_states = True
    adds = "a run of the layers above each candidate: half the square of their number, where none is kept"

    def __init__(self) -> None:
        self._losses: WeakKeyDictionary[Part, _Losses] = WeakKeyDictionary()
        self._streams: WeakKeyDictionary[Part, KeptStreams] = WeakKeyDictionary()

    def barriers(self, num_layers: int) -> set[int]:
        return {0, num_layers - 1}

    def demand(self, shape: ModelShape, span: int) -> Demand:
        """All candidates' streams of one micro-batch, and room for as many boundaries as there are candidates."""
        return Demand(lambda tokens: shape.num_layers * tokens * shape.hidden_size * shape.itemsize, shape.num_layers)

    def observe(self, evidence: Evidence, part: Part) -> None:
        run, layers = evidence.run, tuple(evidence.candidates)
        known = self._losses.get(part)
        if known is not None and known.stack is run.stack and known.candidates == layers:
            return
        scale = evidence.lookahead or (lambda block: 1.0)
        without = {layer: run.stack.remove(layer, scale((layer,))) for layer in layers}
        if run.caches and part not in self._streams:
            self._streams[part] = KeptStreams.beside(part, run)
        sums = leave_one_out(run, part, without, self._streams.get(part))
        self._losses[part] = _Losses(run.stack, layers, sums)

    def score(self, evidence: Evidence) -> dict[int, float]:
        counted = self._counted(evidence)
        predicted = sum(part.all_windows.num_tokens - part.all_windows.count for part, _ in counted)
        layers, sums = self.sequence_scores(evidence)
        return dict(zip(layers, (sums.sum(dim=0) / predicted).tolist(), strict=True))

    def sequence_scores(self, evidence: Evidence) -> tuple[list[int], torch.Tensor]:
        known = [losses for _, losses in self._counted(evidence)]
        return list(known[0].candidates), torch.cat([one.sums for one in known])

    def _counted(self, evidence: Evidence) -> list[tuple[Part, _Losses]]:
        """The parts whose losses are of the model as it stands. A part can be up to date without: its own loss has been
        asked for, and nothing else of it."""
        known = [(part, self._losses.get(part)) for part in evidence.run.current]
        return [(part, one) for part, one in known if one is not None and one.stack is evidence.stack]
