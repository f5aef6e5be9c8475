"""The repair of a run as a whole: judged, fitted, and told."""

from __future__ import annotations

import time
from dataclasses import dataclass

from prunecomp.data.windows import Windows
from prunecomp.engine.placement import Placement
from prunecomp.engine.progress import Progress, silent
from prunecomp.errors import OptionError
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.repair.judge import FITS, judge, put, settings
from prunecomp.repair.maps import check_mappable
from prunecomp.repair.refit import RIDGE, GapRecord, bare
from prunecomp.repair.writers import mlp_writer


@dataclass(frozen=True)
class Outcome:
    """What a repair saw and did, as a run's record holds it."""

    asked: str
    taken: str
    """``none``: nothing in place of the layers; ``loop``: the seams that the choosing left; ``scalar``; or what was
    fitted."""
    losses: dict[str, dict[str, float]]
    """Nats a token by what was compared, on each source or stretch of the calibration that was left out; empty where
    nothing was compared."""
    gaps: list[GapRecord]
    layer_forwards: float
    """Passes of all calibration windows through one layer, judging and fitting together."""
    seconds: float
    judged_layer_forwards: float = 0.0
    """Those of them that judging took."""


def check_repairable(decoder: Decoder, kind: str) -> None:
    """Raise :class:`OptionError` before any work where a fit that was asked for has nothing to fit; the model may be on
    the meta device."""
    if kind == "map":
        check_mappable(decoder)
    if kind in FITS and all(mlp_writer(decoder, layer) is None for layer in range(decoder.num_layers)):
        raise OptionError(
            f"--repair {kind}: {decoder.family.name} has no matrix to fit: its layers end in routed experts alone; use "
            "--repair none or auto"
        )


def repair(
    decoder: Decoder,
    windows: Windows,
    placement: Placement,
    stack: LayerStack,
    kind: str,
    ridge: float = RIDGE,
    *,
    replaces: bool = True,
    progress: Progress = silent,
) -> tuple[LayerStack, Outcome]:
    """The repaired model, and what was done: ``kind`` is a ``RepairName`` but ``none``; ``replaces`` off keeps ``auto``
    to what puts no new weights in place."""
    started = time.perf_counter()
    verdict = judge(decoder, windows, placement, stack, settings(decoder, kind, ridge, stack, replaces), progress)
    setting, forwards, gaps = verdict.setting, verdict.layer_forwards, []
    if setting.kind == "none":
        stack = bare(stack)
    elif setting.kind != "loop":
        repaired = put(setting, decoder, windows, placement, stack, progress)
        stack, gaps = repaired.stack, repaired.gaps
        forwards += repaired.window_forwards / windows.count
    spent = time.perf_counter() - started
    return stack, Outcome(kind, setting.name, verdict.losses, gaps, forwards, spent, verdict.layer_forwards)
