"""Repairs of a model whose layers are chosen: fitted once, at the end, from below, and free at run time."""

from prunecomp.repair.judge import most_layer_forwards
from prunecomp.repair.maps import check_placed, demand_of
from prunecomp.repair.outcome import Outcome, check_repairable, repair
from prunecomp.repair.refit import RIDGE, GapRecord, refit

__all__ = [
    "RIDGE", "GapRecord", "Outcome", "check_placed", "check_repairable", "demand_of", "most_layer_forwards",
    "refit", "repair",
]  # fmt: skip
