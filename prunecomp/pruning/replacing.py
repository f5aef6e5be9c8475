"""Whether new weights may be put in place of a model's own."""

from __future__ import annotations

from collections.abc import Collection

from prunecomp.checkpoint.export import check_export
from prunecomp.compensation import COMPENSATIONS
from prunecomp.errors import FoldError
from prunecomp.model.source import ModelSource
from prunecomp.options import PruneOptions
from prunecomp.repair import check_repairable


def may_replace(model_source: ModelSource, options: PruneOptions, candidates: Collection[int]) -> bool:
    """Whether a repair may put new weights in place. Raises what is known before any work to have no export, or nothing
    to fit; ``auto`` then does without new weights."""
    fold = None if options.compensation == "none" and options.repair == "none" else options.fold
    asked = bool(getattr(COMPENSATIONS[options.compensation], "replaces_weights", False))
    if options.repair == "auto":
        try:
            check_export(model_source, candidates, fold, True)
        except FoldError:
            check_export(model_source, candidates, fold, asked)
            return False
        return True
    check_export(model_source, candidates, fold, asked or options.repair != "none")
    check_repairable(model_source.described, options.repair)
    return options.repair != "none"
