"""Prune layers from large language models and compensate for them without training."""

from prunecomp.io import starting  # noqa: F401, I001  (first: what follows takes seconds, and may be interrupted)
from prunecomp import errors
from prunecomp.api import evaluate, prune, score
from prunecomp.collect import Collected, collect
from prunecomp.compare import Arm, Comparison, compare
from prunecomp.model.adapter import Family
from prunecomp.model.families import families
from prunecomp.pruning.plan import RunPlan, plan
from prunecomp.pruning.pruner import Pruner
from prunecomp.pruning.result import PruneResult, RoundRecord, ScoreResult
from prunecomp.stepwise import pruner_for

__all__ = [
    "Arm",
    "Collected",
    "Comparison",
    "Family",
    "PruneResult",
    "Pruner",
    "RoundRecord",
    "RunPlan",
    "ScoreResult",
    "collect",
    "compare",
    "errors",
    "evaluate",
    "families",
    "plan",
    "prune",
    "pruner_for",
    "score",
]
