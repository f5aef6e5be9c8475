"""Which repair is taken: by what the model then loses on text that was left out of the fit.

Each source of the calibration is left out once, or each stretch of it where it is one source: what is judged is fitted
on the others, and the loss of the whole repaired model is measured on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from prunecomp.data.windows import Windows
from prunecomp.engine.parallel import world_size
from prunecomp.engine.placement import Placement
from prunecomp.engine.progress import Progress, silent
from prunecomp.engine.run import Run
from prunecomp.errors import NumericalError
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.repair.maps import MapFit
from prunecomp.repair.refit import RIDGE, Repaired, bare, refit
from prunecomp.repair.writers import attention_writer, mlp_writer

STRETCHES = 4
"""Parts of a calibration of one source, each left out once."""

JUDGED_TOKENS = 2**16
"""Tokens that a judgement looks at, from windows spread over the calibration: enough for losses to differ by less than
a hundredth where nothing does."""


FITS = ("refit", "joint", "map")
"""Repairs that put new weights in place."""


@dataclass(frozen=True)
class Setting:
    """One way to repair."""

    kind: str
    """``none``: nothing in place of what went; ``loop``: the seams that the choosing left; ``scalar``: least-squares
    scalars; ``refit`` and ``joint``: what :func:`prunecomp.repair.refit.refit` fits; ``map``: that, and the maps of
    :mod:`prunecomp.repair.maps`."""
    ridge: float = RIDGE

    @property
    def name(self) -> str:
        if self.kind in FITS:
            return f"{self.kind}, ridge {self.ridge:g}"
        return self.kind


@dataclass(frozen=True)
class Verdict:
    """What was taken, and what was seen."""

    setting: Setting
    losses: dict[str, dict[str, float]]
    """Nats a token by the name of the setting, then of what was left out; empty where nothing was compared."""
    layer_forwards: float
    """Passes of all calibration windows through one layer."""


def settings(decoder: Decoder, kind: str, ridge: float, loop: LayerStack, replaces: bool) -> list[Setting]:
    """What is compared, the first the one that is taken where there is nothing to compare on.

    ``replaces`` off rules out what puts new weights in place.
    """
    fits: list[Setting] = []
    if replaces and any(mlp_writer(decoder, layer) is not None for layer in range(decoder.num_layers)):
        together = any(attention_writer(decoder, layer) is not None for layer in range(decoder.num_layers))
        best = ("joint" if together else "refit") if kind == "auto" else kind
        fits = [Setting(best, ridge)]
    if kind != "auto":
        return fits
    scalars = [] if fits or decoder.family.mlp_norm is not None else [Setting("scalar")]
    return [*fits, *([Setting("loop")] if set(loop.seams) != {1.0} else []), *scalars, Setting("none")]


def put(
    setting: Setting,
    decoder: Decoder,
    windows: Windows,
    placement: Placement,
    loop: LayerStack,
    progress: Progress = silent,
) -> Repaired:
    """The stack with ``setting`` in place, fitted on ``windows``."""
    if setting.kind == "map":
        return MapFit(decoder, windows, placement, bare(loop), joint=True, ridge=setting.ridge).run(progress)
    return refit(
        decoder, windows, placement, loop, joint=setting.kind == "joint", ridge=setting.ridge,
        fitted=setting.kind != "scalar", progress=progress,
    )  # fmt: skip


def judge(
    decoder: Decoder,
    windows: Windows,
    placement: Placement,
    loop: LayerStack,
    candidates: Sequence[Setting],
    progress: Progress = silent,
) -> Verdict:
    """Of ``candidates`` the one with the least loss, in the mean over stretches that were left out of its fit; where
    nothing at all is among them, of those that are no worse than that on any stretch."""
    stretches = stretches_of(windows)
    if len(candidates) == 1 or len(stretches) < 2:
        return Verdict(candidates[0], {}, 0.0)
    losses: dict[str, dict[str, float]] = {setting.name: {} for setting in candidates}
    forwards = 0.0
    with progress("judging", len(stretches) * len(candidates), "trials") as advance:
        for name, left_out in stretches.items():
            rows = torch.cat([rows for other, rows in stretches.items() if other != name]).sort().values
            seen, unseen = windows.take(rows), windows.take(left_out)
            for setting in candidates:
                stack = loop if setting.kind == "loop" else bare(loop)
                if setting.kind not in ("none", "loop"):
                    repaired = put(setting, decoder, seen, placement, loop)
                    stack = repaired.stack
                    forwards += repaired.window_forwards
                run = Run(decoder, unseen, placement, stack=stack, measured=False)
                losses[setting.name][name] = loss_of(run)
                forwards += run.layer_forwards * unseen.count
                advance(1)
    names = [setting.name for setting in candidates]
    fair = [name for name in names if "none" not in losses or no_worse(losses[name], losses["none"])]
    best = min(fair, key=lambda name: sum(losses[name].values()))
    return Verdict(candidates[names.index(best)], losses, forwards / windows.count)


def no_worse(losses: Mapping[str, float], than: Mapping[str, float]) -> bool:
    return all(loss <= than[name] for name, loss in losses.items())


def loss_of(run: Run) -> float:
    """Nats a token, infinite where values overflow."""
    try:
        return run.loss(keep=False)
    except NumericalError:
        return math.inf


def judged_windows(windows: int, num_tokens: int) -> int:
    """Of so many windows with so many tokens in all, how many a judgement looks at."""
    return min(windows, max(STRETCHES * world_size(), JUDGED_TOKENS * windows // num_tokens))


def most_layer_forwards(num_layers: int, layers: int, windows: int, num_tokens: int, stretches: int) -> float:
    """Passes of all windows through one layer that a repair of ``layers`` removals takes at most.

    A fit brings the dense and the pruned stream up to the highest gap, and looks at the layer below each of at most
    ``layers`` gaps up to three times; a judgement, where there are ``stretches``, fits on all but one in turn, and
    passes what is left out twice.
    """
    fit = num_layers + (num_layers - layers) + 3 * layers
    if stretches < 2:
        return fit
    share = judged_windows(windows, num_tokens) / windows
    return fit + share * ((stretches - 1) * fit + 2 * (num_layers - layers))


def stretches_of(windows: Windows) -> dict[str, torch.Tensor]:
    """Rows of the windows that are judged on, by source, or in order by stretch; several processes need some each, so
    there are fewer stretches where there are few windows."""
    judged = judged_windows(windows.count, windows.num_tokens)
    rows = torch.linspace(0, windows.count - 1, judged).round().long().unique()
    if windows.kinds is not None:
        names = windows.kind_names
        names = names if len(set(names)) == len(names) else tuple(f"{name} ({n})" for n, name in enumerate(names, 1))
        of_kind = {name: rows[windows.kinds[rows] == kind] for kind, name in enumerate(names)}
        sources = {name: those for name, those in of_kind.items() if len(those) >= world_size()}
        if len(sources) > 1:
            return sources
    stretches = rows.tensor_split(max(1, min(STRETCHES, len(rows) // world_size())))
    return {f"stretch {number}": stretch for number, stretch in enumerate(stretches, start=1)}
