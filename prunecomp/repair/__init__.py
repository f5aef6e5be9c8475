"""Repairs of a model whose layers are chosen: fitted once, at the end, from below, and free at run time."""

from prunecomp.repair.judge import Setting, Verdict, judge, settings
from prunecomp.repair.refit import RIDGE, Gap, GapRecord, Repaired, gaps_of, refit

__all__ = ["RIDGE", "Gap", "GapRecord", "Repaired", "Setting", "Verdict", "gaps_of", "judge", "refit", "settings"]
