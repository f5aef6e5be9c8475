"""A run as the parts that its progress is told in, each with what it is expected to take."""

from __future__ import annotations

from prunecomp.data.windows import Windows
from prunecomp.engine.placement import Placement
from prunecomp.engine.progress import Part, Whole
from prunecomp.engine.work import expected_round
from prunecomp.options import PruneOptions
from prunecomp.repair.judge import most_layer_forwards, stretches_of

ANSWERED_TOKENS = 2**17
"""What a model's answers cost, in tokens of a text that is read."""


def round_of(number: int, rounds: int) -> str:
    return f"round {number} of {rounds}"


def whole_of(
    options: PruneOptions,
    num_layers: int,
    windows: Windows,
    evaluation: Windows | None,
    placement: Placement,
    rounds: int,
) -> Whole:
    """Of a run in so many ``rounds``, then repaired and evaluated. Work is tokens through a layer."""
    layers, tokens = float(num_layers), float(windows.num_tokens)
    parts = {"loading": Part(0.0)}
    for number in range(1, rounds + 1):
        forwards = (
            layers if number == 1 else 0.0 if options.one_shot else expected_round(placement, num_layers - number)
        )
        parts[round_of(number, rounds)] = Part(forwards * tokens, forwards * windows.count)
    stops = options.curve or [options.layers]
    if options.repair != "none" and options.target is None:  # a target repairs in each round
        stretches = len(stretches_of(windows))
        fit, judged = (
            sum(most_layer_forwards(num_layers, n, windows.count, windows.num_tokens, some) for n in stops)
            for some in (0, stretches)
        )
        if options.repair == "auto":  # a fit, what the loop left, and nothing
            ways = 2 if options.compensation == "none" else 3
            parts["judging"] = Part((judged - fit) * tokens, len(stops) * stretches * ways)
        parts["repairing"] = Part(fit * tokens, fit * windows.count)
    if evaluation is not None:
        models = 1 + len(stops)
        parts["evaluating"] = Part(models * layers * evaluation.num_tokens, models * layers * evaluation.count)
    if options.profile:
        parts["answering"] = Part((1 + len(stops)) * layers * ANSWERED_TOKENS)
    return Whole(options.progress, "pruning", parts)
