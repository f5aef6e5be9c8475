"""Many ways to prune one model, compared on equal terms: what several of them need is computed once."""

from prunecomp.compare.api import compare
from prunecomp.compare.arms import PRESETS, Arm, grid
from prunecomp.compare.results import ArmWork, Comparison, Measurement, Text

__all__ = ["PRESETS", "Arm", "ArmWork", "Comparison", "Measurement", "Text", "compare", "grid"]
