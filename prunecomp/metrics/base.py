"""What a metric is, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from prunecomp.engine.placement import Demand, ModelShape
from prunecomp.engine.run import CalibrationShard, Run
from prunecomp.engine.statistics import Statistics
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack


@dataclass(frozen=True)
class Candidates:
    """Everything known when a round is scored."""

    run: Run
    """Its statistics are up to date for the shards in ``run.current``."""
    layers: Sequence[int]
    """Survivors that may go, by original index, from below."""
    span: int = 1
    """How many neighbours go together."""
    seed: int = 0
    given: Sequence[int] = ()
    """The order in which the user wants layers removed, for the metric ``given``."""
    parity: str | None = None
    """``official``: reproduce the published code, its faults included."""
    lookahead: Callable[[tuple[int, ...]], float] | None = None
    """With ``--lookahead``: the scale that would take the place of a block."""

    @property
    def stack(self) -> LayerStack:
        return self.run.stack

    @property
    def statistics(self) -> Statistics:
        return self.run.statistics

    @property
    def decoder(self) -> Decoder:
        return self.run.decoder

    def block(self, first: int) -> tuple[int, ...]:
        """The neighbouring survivors that a score under ``first`` is for."""
        p = self.stack.position(first)
        return self.stack.alive[p : p + self.span]

    def starts(self) -> list[int]:
        """Survivors from which a whole block can be counted upwards."""
        return list(self.stack.alive[: len(self.stack.alive) - self.span + 1])


class Metric:
    """A number for each survivor, or for each block of neighbours under its lowest; the lowest number goes first.

    Other packages derive from this and name their class under the entry-point group ``prunecomp.metrics``. One object
    serves one run, round after round.
    """

    spans = False
    """Whether blocks of more than one layer can be scored."""
    one_block = False
    """Whether, without ``--span``, all layers go as one block."""
    looks_ahead = False
    """Whether ``--lookahead`` means anything."""
    ends_early = False
    """Whether ``--confidence`` means anything: scores are sums over sequences."""
    takes_order = False
    """Whether it ranks by ``--given``, and so removes no other layers."""
    heeds_parity = False
    """Whether ``--parity`` means anything beside the dtype."""
    reads_states = False
    """Whether scoring sets out from the states that the pass keeps, so that they are kept in a last round too."""
    backward = False
    """Whether scores come from gradients, for which the engine is to keep states."""

    adds: str = ""
    """The work of a round beside its pass, in words; none where statistics are all it reads."""

    def needs_gram(self, span: int, parity: str | None = None) -> bool:
        """Whether the engine is to take the Gram matrix of all states."""
        return False

    def needs_cosines_along_tokens(self, parity: str | None) -> bool:
        """Whether it is also to take the cosines that the official code takes; see :mod:`prunecomp.engine.gram`."""
        return False

    def demand(self, shape: ModelShape, span: int) -> Demand:
        """What scoring takes beside a forward pass."""
        return Demand()

    def barriers(self, num_layers: int) -> set[int]:
        """Layers that are no candidates unless the user names the candidates himself."""
        return set()

    def observe(self, candidates: Candidates, shard: CalibrationShard) -> None:
        """Called when a shard of the calibration set has been brought up to date, before :meth:`score`."""

    def score(self, candidates: Candidates) -> dict[int, float]:
        """By original index of the (lowest) layer, for as many survivors as it can tell."""
        raise NotImplementedError

    def sequence_scores(self, candidates: Candidates) -> tuple[list[int], torch.Tensor]:
        """The layers scored and, sequence by sequence over ``run.current``, the sums whose totals rank them the same:
        [N, layers] float64. For metrics that can end early."""
        raise NotImplementedError
