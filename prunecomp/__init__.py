"""Prune layers from large language models and compensate for them without training."""

from prunecomp import errors
from prunecomp.api import evaluate, prune, score
from prunecomp.compare import Arm, Comparison, compare
from prunecomp.model.adapter import Family
from prunecomp.model.families import families
from prunecomp.plan import RunPlan, plan
from prunecomp.pruner import Pruner
from prunecomp.result import PruneResult, RoundRecord, ScoreResult

__all__ = [
    "Arm",
    "Comparison",
    "Family",
    "PruneResult",
    "Pruner",
    "RoundRecord",
    "RunPlan",
    "ScoreResult",
    "compare",
    "errors",
    "evaluate",
    "families",
    "plan",
    "prune",
    "score",
]
