"""The options of a run and of a comparison, and the rules that tie several: held before anything is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prunecomp.errors import OptionError
from prunecomp.io.values import flag, function, layer_set, ridge, several
from prunecomp.names import FORMS, PresetName
from prunecomp.options.aims import Aim
from prunecomp.options.concerns import (
    LAYERS,
    RUN,
    Asking,
    Candidates,
    Choice,
    Data,
    Evaluation,
    Output,
    Place,
    anything,
)
from prunecomp.options.declare import option
from prunecomp.options.targets import Share, check_one, several_stops, stops

if TYPE_CHECKING:
    from prunecomp.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class PruneOptions(Output, Evaluation, Place, Data, Candidates, Choice):
    """The options of a run: those that decide determine its choices, together with model and calibration digest."""

    @classmethod
    def of(cls, caller: str, given: Mapping[str, Any], on: str = "python") -> PruneOptions:
        if caller == "curve":
            wanted = stops("layers", given["layers"])
            return replace(cls.of("prune", {**given, "layers": wanted[-1]}, on), curve=wanted)
        if caller == "prune" and on == "command line" and several_stops(given):
            wanted = given["curve"] if given.get("layers") is None else given["layers"]
            others = {name: value for name, value in given.items() if name not in ("layers", "curve")}
            check_one(caller, given)
            return cls.of("curve", {"out": None, **others, "layers": wanted}, on)
        if caller in ("prune", "plan"):
            check_one(caller, given)
            given = {name: value for name, value in given.items() if name != "layers" or value is not None}
            known = {each.name for each in cls.options(caller, on)}
            given = {**{name: value for name, value in implied(given).items() if name in known}, **given}
        return super().of(caller, given, on)

    @property
    def pending(self) -> bool:
        """Whether how many layers go depends on how many there are; ``layers`` then says nothing yet."""
        return self.layers_left is not None or isinstance(self.keep, Share) or self.target is not None

    @property
    def limits(self) -> list[Aim]:
        """What of the target is held after each round."""
        return [aim for aim in self.target or [] if not aim.goal]

    @property
    def on_text(self) -> list[Aim]:
        """Those of them that are measured on a text."""
        return [aim for aim in self.limits if not aim.task]

    @property
    def of_tasks(self) -> list[Aim]:
        """Those that are measured by probes."""
        return [aim for aim in self.limits if aim.task]

    def aimed(self, num_layers: int) -> PruneOptions:
        """The same for a model of so many layers: ``layers`` is how many go. Raises :class:`OptionError` for none."""
        if not self.pending or self.target is not None:  # of a target, the session knows
            return self
        if isinstance(self.keep, Share):
            left, named, keep = self.keep.of(num_layers), f"--keep {self.keep}", []
        else:
            left, named, keep = self.layers_left or 0, f"--layers-left {self.layers_left}", self.keep
        if left >= num_layers:
            raise OptionError(
                f"{named}: the model has {num_layers} layers, and none would go; have at most {num_layers - 1} stay"
            )
        return replace(self, layers=num_layers - left, layers_left=None, keep=keep)

    def check(
        self,
        metrics: Mapping[str, type[Metric]],
        compensations: Mapping[str, object],
        beside: Sequence[PruneOptions] = (),
    ) -> None:
        """Raise :class:`OptionError` for a name that is not known, and for options that do not go together.

        An option that can do nothing under the others is refused, for it would be passed over in silence; but not one
        that asks for what is done anyway, such as ``one_shot`` where all goes in one block. Of several runs that share
        their options, those ``beside`` this one too, an option has to act in one.
        """
        metric, _ = metrics[self.metric], compensations[self.compensation]
        if self.resume and self.journal is None:
            raise OptionError("resume: there is nothing to go on with without a journal; give one, or leave it out")
        size = self.block_size(metrics)
        if not self.pending and (self.span or 1) > self.layers:
            raise OptionError(f"--span {self.span}: only --layers {self.layers} are to go; give at most as many")
        if not self.pending and self.one_shot and size > 1 and self.layers % size:
            raise OptionError(
                f"--one-shot with --span {size}: all blocks come from one ranking, so --layers {self.layers} must be a "
                "multiple of it"
            )
        on_the_way = "--curve" if self.curve is not None else None if self.target is None else "--target"
        if on_the_way and metric.one_block and self.span is None:
            raise OptionError(
                f"{on_the_way}: --metric {self.metric} removes all layers in one block, and passes no other number on "
                "the way; give a --span, or each number by --layers"
            )
        between = [stop for stop in (self.curve or [])[:-1] if stop % size]
        if between:
            raise OptionError(
                f"--curve {between[0]}: --span {size} removes so many layers at a time, and passes only multiples of "
                "it; give those"
            )
        if self.confidence is not None:
            if self.lookahead:
                raise OptionError("--confidence: a --lookahead needs every sequence for its scales; leave out one")
            if self.parity is not None:
                raise OptionError("--confidence: --parity official has every sequence looked at; leave out one")
        if metric.takes_order and not self.given:
            raise OptionError(f"--given: --metric {self.metric} needs the layers to remove, in order, as in 7,3,5")
        others = [dict(one.idle(metrics)) for one in beside]
        for name, why in self.idle(metrics):
            if all(name in idle for idle in others):
                raise OptionError(f"{name}: {why}")

    def idle(self, metrics: Mapping[str, type[Metric]]) -> Iterator[tuple[str, str]]:
        """Options that were given and can do nothing under the others, and why."""
        metric = metrics[self.metric]
        if self.given and not metric.takes_order:
            yield "--given", f"--metric {self.metric} ranks the layers itself; use --metric given, or leave it out"
        if metric.takes_order:
            for name, value in (("--keep", self.keep), ("--candidates", self.candidates)):
                if value and not isinstance(value, Share):
                    yield name, f"--metric {self.metric} removes the layers of --given and no other; leave it out"
        if (self.span or 1) > 1 and not metric.spans:
            yield f"--span {self.span}", f"--metric {self.metric} scores single layers; choose bi, span or angular"
        if self.lookahead and not metric.looks_ahead:
            yield "--lookahead", f"--metric {self.metric} runs no candidate; choose ppl"
        elif self.lookahead and self.compensation == "none":
            yield "--lookahead", "--compensation none puts nothing in place to look at; choose another, or leave it out"
        if self.confidence is not None and not metric.ends_early:
            yield (
                "--confidence",
                f"--metric {self.metric} is no mean over sequences; choose bi, angular, span or ppl",
            )
        if self.parity is not None and not metric.heeds_parity and self.dtype != "auto":
            yield (
                f"--parity {self.parity}",
                f"--metric {self.metric} is the same in the published code, and --dtype {self.dtype} is named; leave "
                "out one",
            )
        if self.fold != FORMS[0] and self.compensation == "none" and self.repair == "none":
            yield f"--fold {self.fold}", "--compensation none folds nothing; leave it out"
        if self.items != PruneOptions.items and not self.profile and not self.of_tasks:
            yield (
                f"--items {self.items}",
                "neither --profile nor a task: in --target asks any; add one, or leave it out",
            )
        if self.ridge is not None and self.repair == "none":
            yield (
                f"--ridge {self.ridge:g}",
                "--repair none fits nothing; choose refit, joint, map or auto, or leave it out",
            )

    @property
    def window_bos(self) -> str:
        """The published code cuts its windows from the text as the tokenizer gives it."""
        return "start" if self.parity == "official" and self.bos == "auto" else self.bos

    @property
    def compute_dtype(self) -> str:
        """The published code runs every checkpoint in float16."""
        return "float16" if self.parity == "official" and self.dtype == "auto" else self.dtype

    def block_size(self, metrics: Mapping[str, type[Metric]]) -> int:
        """How many neighbours go together."""
        if self.span is not None:
            return self.span
        return self.layers if metrics[self.metric].one_block else 1


def implied(given: Mapping[str, Any]) -> dict[str, str]:
    """What a run has for compensation and repair that were not ``given``: it repairs at the end, unless what stands in
    the seams is named, by itself or as what the paper has. Layers are then chosen with nothing in place."""
    if given.get("preset") is not None:
        return {}
    named = "compensation" in given or given.get("lookahead")
    found = {} if "repair" in given else {"repair": "none" if named else "auto"}
    repairs = {**found, **given}["repair"] not in ("none", None)
    return found if named or not repairs else {**found, "compensation": "none"}


def one_shot_modes(option: str, value: Any) -> list[bool]:
    """Whether to rank once, or several answers to it."""
    return [flag(option, mode) for mode in ([value] if isinstance(value, bool) else several(option, value))]


def ridges(option: str, value: Any) -> list[float | None]:
    """One or several strengths of a fit."""
    return [ridge(option, each) for each in ([value] if isinstance(value, int | float) else several(option, value))]


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Output, Asking, Place, Data, Candidates):
    """The options of a comparison: a grid of ways to prune, and what each has in common."""

    panel = "Comparison"

    layers: list[int] | None = option(
        None, "after how many removals to measure, as in 2,4,6 or 1-8", layer_set, of="compare",
        takes=f"{LAYERS} | None", metavar="LAYERS",
    )  # fmt: skip
    eval: Any = option(
        None, "text to measure perplexity on, as NAME=PATH or a source as for prune; repeat it for more. "
        "wikitext2-test, c4-validation and ptb-test follow the published protocols, with =PATH from a local file",
        anything, of="compare", metavar="TEXT",
    )  # fmt: skip
    metrics: list[str] | None = option(
        None, "what layers are scored by, as in bi,ppl", several, of="compare", takes="Sequence[str] | str | None",
        metavar="NAMES", shown_default="bi",
    )  # fmt: skip
    compensations: list[str] | None = option(
        None, "what stands in for a layer while others are chosen, as in none,scale", several, of="compare",
        takes="Sequence[str] | str | None", metavar="NAMES", shown_default="none,scale, and none with --repairs auto",
    )  # fmt: skip
    repairs: list[str] | None = option(
        None, "fitted after each number of removals, as --repair of prune: none, refit, joint, map, auto", several,
        of="compare", takes="Sequence[str] | str | None", metavar="NAMES",
        shown_default="none where compensations are named",
    )  # fmt: skip
    ridges: list[float] | None = option(
        None, "of the repairs, as --ridge of prune, as in 1,3", ridges, of="compare",
        takes="Sequence[float] | float | str | None", metavar="NUMBERS", shown_default="1",
    )  # fmt: skip
    one_shot: bool | list[bool] | None = option(
        None, "rank once instead of after each removal", one_shot_modes, of="compare",
        takes="bool | Sequence[bool] | None",
    )  # fmt: skip
    both_ways: bool = option(False, "one-shot and iterative", of="compare")
    preset: PresetName | None = option(None, "a published comparison; other options win", of="compare")
    resume: bool = option(
        False, "keep what an interrupted comparison has finished in --out", of="compare", panel=RUN, on="command line"
    )
    arms: Any = option(None, "what to compare, instead of a grid", anything, of="compare", on="python")
    earlier: Any = option(None, "an interrupted comparison to go on with", anything, of="compare", on="python")
    on_measured: Callable[[Any], None] | None = option(
        None, "called with all results so far", function, of="compare", on="python"
    )

    @classmethod
    def of(cls, caller: str, given: Mapping[str, Any], on: str = "python") -> CompareOptions:
        asked = super().of(caller, given, on)
        if isinstance(asked.keep, Share):
            raise OptionError(
                f"--keep {asked.keep}: a comparison measures after several removals; name them by --layers"
            )
        return asked

    def common(self, parity: str | None) -> PruneOptions:
        """What each way to prune has in common."""
        shared = {each.name: getattr(self, each.name) for each in PruneOptions.options("compare")}
        return PruneOptions(**{**shared, "parity": parity})
