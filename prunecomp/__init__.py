"""Prune layers from large language models and compensate for them without training."""

from prunecomp import starting  # noqa: F401, I001  (first: what follows takes seconds, and may be interrupted)
from prunecomp import errors
from prunecomp.api import evaluate, prune, score
from prunecomp.checkpoint.apply import cut, pruned_config, tokens_of
from prunecomp.collect import Collected, collect
from prunecomp.compare import Arm, Comparison, compare
from prunecomp.model.adapter import Family
from prunecomp.model.families import families
from prunecomp.plan import RunPlan, plan
from prunecomp.profiling import profile
from prunecomp.pruner import Pruner
from prunecomp.result import PruneResult, RoundRecord, ScoreResult
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
    "cut",
    "errors",
    "evaluate",
    "families",
    "plan",
    "profile",
    "prune",
    "pruned_config",
    "pruner_for",
    "score",
    "tokens_of",
]
