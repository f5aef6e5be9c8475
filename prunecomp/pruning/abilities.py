"""Probes that models on the way to a target are held to, beside the dense model's score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prunecomp.engine.progress import Progress
from prunecomp.errors import TargetError
from prunecomp.evaluation.agreement import Standing
from prunecomp.evaluation.items import MAKERS, RECOGNITION, make_probe
from prunecomp.evaluation.language import Language
from prunecomp.evaluation.probes import Answers, asked, together
from prunecomp.evaluation.profile import Named, in_use
from prunecomp.io.values import listed
from prunecomp.model.source import ModelSource
from prunecomp.model.stack import LayerStack
from prunecomp.options import PruneOptions
from prunecomp.options.aims import Aim, aims
from prunecomp.pruning.language import language_of


class Abilities:
    """What the target of ``options`` has of probes, asked as :func:`prunecomp.profile` asks them.

    The ``dense`` model answers at once. Raises :class:`TargetError` for a probe at which it does no better than a
    guess, with those at which it does.
    """

    def __init__(self, options: PruneOptions, language: Language, dense: Standing, progress: Progress) -> None:
        self._limits, self._fold = options.of_tasks, options.fold
        self._language, self._dense, self._progress = language, Named("dense", dense), progress
        self._probes = {name: make_probe(name, options.items, options.seed) for name in MAKERS}
        found = self._ask(self._dense, self._limits)
        for aim, one in zip(self._limits, found, strict=True):
            if not one.beyond_chance:
                raise TargetError(
                    f"--target {aim}: of {len(one.hits)} problems ({aim.way}) the dense model solves {sum(one.hits)}, "
                    f"which is no better than a guess ({one.guess:.0%}); {self._usable()}"
                )
        self.dense = {one.probe: one.score for one in found}
        """Shares of the problems that it solves, by the names of the limits."""

    @classmethod
    def of(cls, options: PruneOptions, source: ModelSource, dense: Standing, progress: Progress) -> Abilities:
        """For the model of a source that :func:`check_speaks` has nothing against."""
        return cls(options, language_of(source), dense, progress)

    def __call__(self, stack: LayerStack) -> dict[str, float]:
        """How much more of them a model solves, by the same names: -0.05 is 5 % less than the dense one."""
        other = Named("pruned", replace(self._dense.standing, stack=stack), self._fold)
        return {one.probe: one.score / self.dense[one.probe] - 1 for one in self._ask(other, self._limits)}

    def _ask(self, model: Named, limits: Sequence[Aim]) -> list[Answers]:
        found = []
        problems = sum(len(self._probes[name].items) for aim in limits for name in aim.probes)
        with self._progress("answering", problems, "problems") as advance, in_use(model):
            for aim in limits:
                each = [asked(self._language, self._probes[name], aim.way) for name in aim.probes]
                found.append(together(aim.name, each))
                advance(len(found[-1].hits))
        return found

    def _usable(self) -> str:
        names = [f"task:{name}{way}" for name in MAKERS for way in ("", f":{RECOGNITION}")]
        every = self._ask(self._dense, [aims("--target", f"{name}=-0%")[0] for name in names])
        some = [f"{one.probe} ({one.score:.0%})" for one in every if one.beyond_chance]
        return f"name {listed(some, len(some))}" if some else "nor does it better at any other probe: leave them out"
