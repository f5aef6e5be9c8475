"""Prune layers from large language models and compensate for them without training."""

from prunecomp import errors
from prunecomp.model.adapter import Family
from prunecomp.model.families import families
from prunecomp.pruner import Pruner, evaluate, prune, score
from prunecomp.result import PruneResult, RoundRecord, ScoreResult

__all__ = [
    "Family",
    "PruneResult",
    "Pruner",
    "RoundRecord",
    "ScoreResult",
    "errors",
    "evaluate",
    "families",
    "prune",
    "score",
]
