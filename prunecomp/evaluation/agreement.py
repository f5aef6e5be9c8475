"""Agreement with the dense model on a text: how often both expect the same next token, and how far apart their
distributions are. It shows what perplexity is too kind to see.

Both models' last hidden states are brought together, micro-batch by micro-batch, and their logits are made of a few
rows at a time: those of a text over a vocabulary of 128,000 would be a thousand times as large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from prunecomp.data.windows import Batch, Windows
from prunecomp.engine.losses import token_sums
from prunecomp.engine.parallel import world_size
from prunecomp.engine.placement import Placement
from prunecomp.engine.progress import Progress, Within, silent
from prunecomp.engine.run import CalibrationShard, Run
from prunecomp.engine.states import CARRY, StateStore, Tier
from prunecomp.errors import OptionError
from prunecomp.evaluation.perplexity import Estimate, perplexity_of, token_mean
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack


@dataclass(frozen=True)
class Agreement:
    """Of a model with the dense one, over all predicted tokens of a text."""

    kl: Estimate
    """Kullback-Leibler divergence of the model's next-token distribution from the dense one's, KL(dense || model), in
    nats a token."""
    top1: Estimate
    """Share of tokens at which both find the same next token likeliest."""

    def figures(self) -> dict[str, float | None]:
        """As plain numbers."""
        return {
            "kl": self.kl.value, "kl_standard_error": self.kl.standard_error,
            "top1": self.top1.value, "top1_standard_error": self.top1.standard_error,
        }  # fmt: skip


@dataclass(frozen=True)
class TextQuality:
    """A model on a text."""

    perplexity: Estimate
    agreement: Agreement | None
    """None for the dense model itself, and where memory has no room for its last states."""
    windows: int
    seqlen: int
    tokens: int
    """That were predicted."""

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Standing:
    """A model as it stands: surviving layers and seams over a decoder's weights, and how it is run."""

    decoder: Decoder
    stack: LayerStack
    placement: Placement


def on_text(
    windows: Windows, dense: Standing, others: Sequence[Standing] = (), progress: Progress = silent
) -> list[TextQuality]:
    """The dense model and others on a text. Models over the same weights share what lies below the first layer that
    differs. Streamed where memory has no room for a single boundary, they are not compared.

    Raises :class:`OptionError` for models of different vocabularies, and :class:`prunecomp.errors.NumericalError`
    naming layer and sequence where a value is not finite.
    """
    for other in others:
        if other.decoder.vocab_size != dense.decoder.vocab_size:
            raise OptionError(
                f"a model of {other.decoder.vocab_size} tokens beside one of {dense.decoder.vocab_size}: their "
                "distributions do not compare; give the model that the other was made from"
            )
    found: list[list[torch.Tensor]] = [[] for _ in range(1 + len(others))]
    room = compares(dense.placement)
    within = Within(progress)
    runs = _runs(windows, [dense, *others], within)
    for number in range(len(runs[0].shards)):
        kept = LastStates(runs[0], dense.placement)
        for row, (one, run) in enumerate(zip([dense, *others], runs, strict=True)):
            if run.stack is not one.stack:
                run.turn_to(one.stack)
            shard = run.shards[number]
            look = (kept.compare if row else kept.hold) if room else kept.alone
            within.place = called(row, len(others))
            found[row].append(seen(run, shard, look))
    return [quality_of(windows, torch.cat(some), room and row > 0) for row, some in enumerate(found)]


def compares(placement: Placement) -> bool:
    """Whether memory has room for the dense model's last states, to compare others with."""
    return placement.group_size is None or placement.kept_boundaries > 0


def called(row: int, others: int) -> str:
    """What a reader of progress knows the dense model, in row 0, and each of the ``others`` as."""
    return "dense" if row == 0 else "pruned" if others == 1 else f"pruned {row} of {others}"


def seen(run: Run, shard: CalibrationShard, look: Callable[..., torch.Tensor], *, keep: bool = True) -> torch.Tensor:
    """What a ``look`` of :class:`LastStates` finds in a shard's windows, through the head of the run's stack: [N, 3]
    float64."""
    return run.outcomes(shard, partial(look, shard, run.decoder.topped(run.stack)), 3, keep=keep)


def _runs(windows: Windows, models: Sequence[Standing], progress: Progress) -> list[Run]:
    """A run for each model, one and the same where the weights are. Where there is no room for the last states of all
    windows, and weights need not be brought anew for each shard, the shards are as small as can be."""
    runs: dict[Decoder, Run] = {}
    for one in models:
        if one.decoder in runs:
            continue
        sharing = [other.stack for other in models if other.decoder is one.decoder]
        lowest = [min(sharing[0].common_prefix(other), len(other.alive) - 1) for other in sharing[1:]]
        candidates = sorted({sharing[0].alive[p] for p in lowest if p < len(sharing[0].alive)})
        size = min(other.placement.micro_batch for other in models)
        whole = any(other.placement.group_size is not None or other.placement.kept_boundaries for other in models)
        runs[one.decoder] = Run(
            one.decoder, windows, replace(with_room(one.placement), micro_batch=size), stack=sharing[0],
            candidates=candidates, measured=False, progress=progress,
            shards=1 if whole else max(1, windows.count // (size * world_size())),
        )  # fmt: skip
    return [runs[one.decoder] for one in models]


def with_room(placement: Placement) -> Placement:
    """Less one boundary, whose place the dense model's last states take."""
    tier = _tier_of(placement)
    return replace(placement, capacity={**placement.capacity, tier: max(0, placement.capacity.get(tier, 0) - 1)})


def _tier_of(placement: Placement) -> Tier:
    return next((tier for tier in Tier if placement.capacity.get(tier, 0) > 0), placement.carry)


class LastStates:
    """What leaves the dense model's last layer, of some windows, and what others are beside it."""

    def __init__(self, run: Run, placement: Placement) -> None:
        self._decoder, self._placement = run.decoder, placement
        self._stores: dict[int, StateStore] = {}  # by where a shard begins

    def hold(self, shard: CalibrationShard, decoder: Decoder, batch: Batch, stream: torch.Tensor) -> torch.Tensor:
        """Keep the dense model's state of a micro-batch, and return :func:`beside` of it with itself."""
        store = self._stores.get(shard.first)
        if store is None:
            store = self._stores[shard.first] = StateStore(
                shard.sweeper.state_shape, decoder.device, {}, carry=_tier_of(self._placement),
                disk=self._placement.disk_folder,
            )  # fmt: skip
        store.put(CARRY, batch, stream)
        return self.alone(shard, decoder, batch, stream)

    def alone(self, shard: CalibrationShard, decoder: Decoder, batch: Batch, stream: torch.Tensor) -> torch.Tensor:
        """:func:`beside` of a state with nothing."""
        return beside(decoder, None, batch, stream)

    def compare(self, shard: CalibrationShard, decoder: Decoder, batch: Batch, stream: torch.Tensor) -> torch.Tensor:
        """:func:`beside` of another model's state with what was kept."""
        return beside(decoder, self._decoder, batch, stream, self._stores[shard.first].get(CARRY, batch))


def beside(
    decoder: Decoder,
    dense: Decoder | None,
    batch: Batch,
    stream: torch.Tensor,
    reference: torch.Tensor | None = None,
) -> torch.Tensor:
    """Of each of a micro-batch's B windows the sums of the losses, of KL(dense || model) and of the tokens at which
    both agree, [B, 3] float64 on the CPU; zeros for the last two without a ``reference``.

    ``stream`` and ``reference``, [B, S, d] or [1, T, d] packed, leave the last layers of the model and the dense one.
    The loss is NaN for a window with a value in the stream that is not finite.
    """
    look = partial(_rows_beside, decoder, dense)
    return token_sums(decoder, batch, look, stream, *([] if reference is None else [reference]))


QUARTERS = 4
"""Two distributions and what lies between them take several times the room of the logits that a loss is made of."""


def _rows_beside(
    decoder: Decoder,
    dense: Decoder | None,
    rows: torch.Tensor,
    wanted: torch.Tensor,
    others: torch.Tensor | None = None,
) -> torch.Tensor:
    """[R, 3] float32 for R rows [R, d]."""
    logits = decoder.logits(rows).float()
    found = torch.zeros(len(rows), 3, dtype=torch.float32, device=rows.device)
    found[:, 0] = functional.cross_entropy(logits, wanted, reduction="none")
    if dense is None or others is None:
        return found
    size = -(-len(rows) // QUARTERS)
    for out, mine, theirs in zip(found.split(size), logits.split(size), others.split(size), strict=True):
        expected = dense.logits(theirs.to(dense.device)).float().to(mine.device)[:, : mine.shape[1]]
        q, p = mine.log_softmax(dim=1), expected.log_softmax(dim=1)
        out[:, 1] = functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)
        out[:, 2] = mine.argmax(dim=1) == expected.argmax(dim=1)
    return found


def quality_of(windows: Windows, sums: torch.Tensor, compared: bool) -> TextQuality:
    """From what :func:`beside` gives of each window, [N, 3]."""
    tokens = windows.predicted
    loss, kl, top1 = (token_mean(column, tokens) for column in sums.T)
    return TextQuality(
        perplexity_of(loss), Agreement(kl, top1) if compared else None, windows.count, windows.seqlen, int(tokens.sum())
    )
