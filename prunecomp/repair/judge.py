"""Which repair is taken: by what the model then loses on a stretch of text that was left out of the fit.

The calibration is cut into stretches, sources or kinds where it holds several one after another. Each is left out once:
what is judged is fitted on the others, and the loss of the whole repaired model is measured on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from prunecomp.data.windows import Windows
from prunecomp.engine.parallel import world_size
from prunecomp.engine.placement import Placement
from prunecomp.engine.progress import Progress, silent
from prunecomp.engine.run import Run
from prunecomp.errors import NumericalError
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.repair.refit import RIDGE, Repaired, bare, refit
from prunecomp.repair.writers import attention_writer, mlp_writer

STRETCHES = 4
"""Parts of the calibration, each left out once."""

RIDGES = (RIDGE, 3.0)
"""None lighter than the default: on text like the calibration one looks better than it is, and stretches of one kind of
text cannot tell."""

JUDGED_TOKENS = 2**16
"""Tokens that a judgement looks at, from windows spread over the calibration: enough for losses to differ by less than
a hundredth where nothing does."""


@dataclass(frozen=True)
class Setting:
    """One way to repair."""

    kind: str
    """``none``: nothing in place of what went; ``loop``: the seams that the choosing left; ``scalar``: least-squares
    scalars; ``refit`` and ``joint``: what :func:`prunecomp.repair.refit.refit` fits."""
    ridge: float = RIDGE
    scalar: bool = True
    """Whether the fit has a least-squares scalar for its prior, which is put into the seam."""

    @property
    def name(self) -> str:
        if self.kind in ("refit", "joint"):
            return f"{self.kind}, ridge {self.ridge:g}" + ("" if self.scalar else ", no scalar")
        return self.kind


@dataclass(frozen=True)
class Verdict:
    """What was taken, and what was seen."""

    setting: Setting
    losses: dict[str, list[float]]
    """Nats a token on each stretch by the name of the setting; empty where nothing was compared."""
    layer_forwards: float
    """Passes of all calibration windows through one layer."""


def settings(decoder: Decoder, kind: str, ridge: float | None, loop: LayerStack, replaces: bool) -> list[Setting]:
    """What is compared, the first the one that is taken where there is nothing to compare on.

    ``ridge`` None lets the ridge be chosen too; ``replaces`` off rules out what puts new weights in place.
    """
    fits: list[Setting] = []
    if replaces and any(mlp_writer(decoder, layer) is not None for layer in range(decoder.num_layers)):
        together = any(attention_writer(decoder, layer) is not None for layer in range(decoder.num_layers))
        best = ("joint" if together else "refit") if kind == "auto" else kind
        fits = [Setting(best, one) for one in (RIDGES if ridge is None else (ridge,))]
        if kind == "auto" and decoder.family.mlp_norm is None:
            fits.append(replace(fits[0], scalar=False))
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
    return refit(
        decoder, windows, placement, loop, joint=setting.kind == "joint", ridge=setting.ridge, scalar=setting.scalar,
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
    losses: dict[str, list[float]] = {setting.name: [] for setting in candidates}
    forwards = 0.0
    with progress("judging", len(stretches) * len(candidates), "trials") as advance:
        for number, left_out in enumerate(stretches):
            rows = torch.cat([rows for other, rows in enumerate(stretches) if other != number])
            seen, unseen = windows.take(rows), windows.take(left_out)
            for setting in candidates:
                stack = loop if setting.kind == "loop" else bare(loop)
                if setting.kind not in ("none", "loop"):
                    repaired = put(setting, decoder, seen, placement, loop)
                    stack = repaired.stack
                    forwards += repaired.window_forwards
                run = Run(decoder, unseen, placement, stack=stack, measured=False)
                losses[setting.name].append(loss_of(run))
                forwards += run.layer_forwards * unseen.count
                advance(1)
    names = [setting.name for setting in candidates]
    fair = [name for name in names if "none" not in losses or no_worse(losses[name], losses["none"])]
    best = min(fair, key=lambda name: sum(losses[name]))
    return Verdict(candidates[names.index(best)], losses, forwards / windows.count)


def no_worse(losses: Sequence[float], than: Sequence[float]) -> bool:
    return all(mine <= its for mine, its in zip(losses, than, strict=True))


def loss_of(run: Run) -> float:
    """Nats a token, infinite where values overflow."""
    try:
        return run.loss(keep=False)
    except NumericalError:
        return math.inf


def stretches_of(windows: Windows) -> list[torch.Tensor]:
    """Rows of the windows that are judged on, stretch by stretch, in the order of the text; several processes need
    some each, so there are fewer where there are few windows."""
    judged = min(windows.count, max(STRETCHES * world_size(), JUDGED_TOKENS * windows.count // windows.num_tokens))
    rows = torch.linspace(0, windows.count - 1, judged).round().long().unique()
    return list(rows.tensor_split(max(1, min(STRETCHES, len(rows) // world_size()))))
