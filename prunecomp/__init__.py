"""Prune layers from large language models and compensate for them without training."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prunecomp import errors
from prunecomp.io import starting  # noqa: F401  (first: what follows takes seconds, and may be interrupted)

if TYPE_CHECKING:
    from prunecomp.api import curve, evaluate, prune, score
    from prunecomp.checkpoint.apply import cut, pruned_config, tokens_of
    from prunecomp.collect import Collected, collect
    from prunecomp.compare import Arm, Comparison, compare
    from prunecomp.model.adapter import Family
    from prunecomp.model.families import families
    from prunecomp.profiling import profile
    from prunecomp.pruning.curve import Curve
    from prunecomp.pruning.plan import RunPlan, plan
    from prunecomp.pruning.pruner import Pruner
    from prunecomp.pruning.result import PruneResult, RoundRecord
    from prunecomp.pruning.scores import Evaluated, ScoreResult
    from prunecomp.stepwise import pruner_for

    __version__: str

__all__ = [
    "Arm",
    "Collected",
    "Comparison",
    "Curve",
    "Evaluated",
    "Family",
    "PruneResult",
    "Pruner",
    "RoundRecord",
    "RunPlan",
    "ScoreResult",
    "__version__",
    "collect",
    "compare",
    "curve",
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

_HOMES = {
    "api": ("curve", "evaluate", "prune", "score"),
    "checkpoint.apply": ("cut", "pruned_config", "tokens_of"),
    "collect": ("Collected", "collect"),
    "compare": ("Arm", "Comparison", "compare"),
    "model.adapter": ("Family",),
    "model.families": ("families",),
    "profiling": ("profile",),
    "pruning.curve": ("Curve",),
    "pruning.plan": ("RunPlan", "plan"),
    "pruning.pruner": ("Pruner",),
    "pruning.result": ("PruneResult", "RoundRecord"),
    "pruning.scores": ("Evaluated", "ScoreResult"),
    "stepwise": ("pruner_for",),
}
_HOME = {name: f"prunecomp.{home}" for home, names in _HOMES.items() for name in names}


class _Public(ModuleType):
    """The package: a public name is imported when it is first asked for, since torch takes seconds."""

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return import_module("prunecomp.names").VERSION
        if name not in _HOME:
            raise AttributeError(f"module 'prunecomp' has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # An imported submodule becomes an attribute; plan, collect and compare are functions by the same name.
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Public
