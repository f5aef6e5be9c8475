"""The loop: score, remove, compensate, repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prunecomp.compensation import Seam
from prunecomp.errors import OptionError
from prunecomp.io.values import listed
from prunecomp.model.stack import LayerStack, Overlay
from prunecomp.pruning.pruner import Pruner
from prunecomp.pruning.result import RoundRecord
from prunecomp.repair import Outcome

NO_BLOCK = "no block of --span layers is left that may go: remove fewer, or let other layers go"


def choose_candidates(
    num_layers: int,
    layers: int,
    keep: Iterable[int] = (),
    candidates: Iterable[int] | None = None,
    barriers: Iterable[int] = (),
) -> list[int]:
    """The layers that may be removed: ``candidates``, or all but the metric's ``barriers``, less ``keep``.

    Raises :class:`OptionError` unless there are more of them than ``layers``; or as many, where the caller named them
    and one layer of the model stays.
    """
    named = candidates is not None
    keep = set(keep)
    chosen = set(range(num_layers)) - set(barriers) if candidates is None else set(candidates)
    for option, indices in (("--keep", keep), ("--candidates", chosen)):
        outside = sorted(i for i in indices if not 0 <= i < num_layers)
        if outside:
            raise OptionError(f"{option} {listed(outside)}: the model's layers are 0 to {num_layers - 1}")
    chosen -= keep
    if layers < 1:
        raise OptionError(f"--layers {layers}: give at least 1")
    most = max(0, min(len(chosen) - (not named), num_layers - 1))
    if layers > most:
        raise OptionError(
            f"--layers {layers}: only {len(chosen)} of the model's {num_layers} layers are candidates, "
            f"so at most {most} can be removed"
        )
    return sorted(chosen)


def lowest(scores: Mapping[int, float], among: Iterable[int]) -> int:
    """The candidate with the lowest score; ties go to the lower layer."""
    return min(among, key=lambda layer: (scores[layer], layer))


def choose_block(
    scores: Mapping[int, float], blocks: Mapping[int, tuple[int, ...]], free: set[int]
) -> tuple[int, ...] | None:
    """The block with the lowest score of those all of whose layers are ``free``, there and allowed to go; None if there
    is no such block."""
    whole = [first for first, block in blocks.items() if set(block) <= free]
    return blocks[lowest(scores, whole)] if whole else None


def run_rounds(
    pruner: Pruner,
    layers: int,
    candidates: list[int],
    one_shot: bool,
    *,
    done: Sequence[RoundRecord] = (),
    overlays: Mapping[int, Mapping[int, Overlay]] | None = None,
    on_round: Callable[[RoundRecord, Mapping[int, Overlay]], None] | None = None,
    until: Callable[[Sequence[RoundRecord]], bool] = lambda rounds: False,
) -> list[RoundRecord]:
    """Remove ``layers`` layers, re-scoring before each removal, or only before the first if ``one_shot``.

    ``done`` are the rounds of an earlier, interrupted run, taken as they are, with the ``overlays`` of each by its
    number; ``on_round`` is told of each new one. ``until`` is asked after each round, those of ``done`` too, and ends
    the loop by a yes.
    """
    rounds: list[RoundRecord] = []
    if one_shot and sum(len(earlier.block) for earlier in done) < layers:
        pruner.score(keep=False, most=layers)  # of the dense model, also when going on: the scales come from there
    for number, earlier in enumerate(done):
        pruner._put(tuple(earlier.block), Seam(earlier.scale, overlays=(overlays or {}).get(number, {})))
        rounds.append(earlier)
        if until(rounds):
            return rounds
    gone = {layer for earlier in done for layer in earlier.block}
    left = [layer for layer in candidates if layer not in gone]
    spent: float = 0
    while len(gone) < layers:
        started = time.perf_counter()
        block: tuple[int, ...] | None = None
        most = layers - len(gone)
        while block is None:  # where the layers that are left lie apart, shorter blocks are tried
            if not one_shot:
                pruner.score(keep=most > 1, most=most)
            block = choose_block(pruner._run.scores, pruner.blocks, set(left) & set(pruner.stack.alive))
            most -= 1
            if block is None and (one_shot or most == 0):
                raise OptionError(f"{NO_BLOCK}, or leave out --one-shot" if one_shot else NO_BLOCK)
        free, left = left, [layer for layer in left if layer not in block]
        gone |= set(block)
        scores = pruner._run.scores
        shown = {index: scores[index] for index in (block[0], *pruner.stack.alive) if index in scores}
        seam = pruner._cut(*block)
        rounds.append(pruner._record(block, seam, dict(sorted(shown.items())), spent, started, free))
        spent = pruner.layer_forwards
        if on_round is not None:
            on_round(rounds[-1], seam.overlays)
        if until(rounds):
            break
    return rounds


@dataclass(frozen=True)
class Stop:
    """The loop where a number of layers is gone."""

    stack: LayerStack
    rounds: list[RoundRecord]
    layer_forwards: float
    """Passes of the calibration set through one layer, so far."""
    at: float
    """On the performance counter."""
    repaired: tuple[LayerStack, Outcome | None] | None = None
    """What is written, where it is known by then."""


class Stops:
    """What the loop passes on its way, of the numbers of layers that are wanted; ``size`` is how many go in a round."""

    def __init__(self, pruner: Pruner, wanted: Sequence[int], size: int) -> None:
        self.passed: list[Stop] = []
        self._pruner, self._wanted, self._size = pruner, wanted, size

    def __call__(self, rounds: Sequence[RoundRecord]) -> bool:
        """Called after each round; the loop goes on."""
        gone, last = sum(len(r.block) for r in rounds), rounds[-1].block
        beyond = [stop for stop in self._wanted[:-1] if stop > gone - len(last)]
        if len(last) < self._size and beyond:
            raise OptionError(
                f"--curve: once {gone - len(last)} layers are gone no block of --span {self._size} is left, and "
                f"{beyond[0]} do not lie on the way to {self._wanted[-1]}: give a lower --span, or each by --layers"
            )
        if gone in self._wanted:
            pruner = self._pruner
            self.passed.append(Stop(pruner.stack, list(rounds), pruner.layer_forwards, time.perf_counter()))
        return False
