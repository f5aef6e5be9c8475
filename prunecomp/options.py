"""The options of a run: read from what a caller gives, and held against each other before anything is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prunecomp.checkpoint.fold import FORMS
from prunecomp.data.sources import BOS
from prunecomp.data.windows import Windows
from prunecomp.engine.placement import COMPILES
from prunecomp.errors import OptionError
from prunecomp.io.values import flag, layer_numbers, one_of, shown, text, whole
from prunecomp.metrics import Metric
from prunecomp.model.loader import ATTENTIONS, DTYPES, choose_device
from prunecomp.model.source import ModelSource, open_source
from prunecomp.ops import requested

PARITIES = ("official",)
LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True)
class PruneOptions:
    """The options of a run, as they were given; they and the calibration digest determine its choices."""

    layers: int
    samples: int = 128
    seqlen: int | None = None
    seed: int = 0
    documents: bool = False
    bos: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    metric: str = "bi"
    compensation: str = "scale"
    one_shot: bool = False
    fold: str = "up"
    keep: list[int] = field(default_factory=list)
    candidates: list[int] | None = None
    given: list[int] = field(default_factory=list)
    span: int | None = None
    lookahead: bool = False
    confidence: float | None = None
    parity: str | None = None
    attn: str = "auto"
    compile: str = "auto"
    backend: str = "auto"

    @classmethod
    def of(cls, **given: Any) -> PruneOptions:
        """The options as plain values. Raises :class:`OptionError` for one that is not of its kind."""
        values = {name: READERS[name](f"--{name.replace('_', '-')}", value) for name, value in given.items()}
        return cls(**{name: value for name, value in values.items() if value is not None})

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
        size = self.block_size(metrics)
        if (self.span or 1) > self.layers:
            raise OptionError(f"--span {self.span}: only --layers {self.layers} are to go; give at most as many")
        if self.one_shot and size > 1 and self.layers % size:
            raise OptionError(
                f"--one-shot with --span {size}: all blocks come from one ranking, so --layers {self.layers} must be a "
                "multiple of it"
            )
        if self.confidence is not None:
            if self.lookahead:
                raise OptionError("--confidence: a --lookahead needs every sequence for its scales; leave out one")
            if self.parity is not None:
                raise OptionError("--confidence: --parity official has every sequence looked at; leave out one")
        if metric.takes_order and not self.given:
            raise OptionError(f"--given: --metric {self.metric} needs the layers to remove, in order, as in 7,3,5")
        others = [dict(one.idle(metrics)) for one in beside]
        for option, why in self.idle(metrics):
            if all(option in idle for idle in others):
                raise OptionError(f"{option}: {why}")

    def idle(self, metrics: Mapping[str, type[Metric]]) -> Iterator[tuple[str, str]]:
        """Options that were given and can do nothing under the others, and why."""
        metric = metrics[self.metric]
        if self.given and not metric.takes_order:
            yield "--given", f"--metric {self.metric} ranks the layers itself; use --metric given, or leave it out"
        if metric.takes_order:
            for option, value in (("--keep", self.keep), ("--candidates", self.candidates)):
                if value:
                    yield option, f"--metric {self.metric} removes the layers of --given and no other; leave it out"
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
        if self.fold != FORMS[0] and self.compensation == "none":
            yield f"--fold {self.fold}", "--compensation none folds nothing; leave it out"

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


def probability(option: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = 0.0
    if isinstance(value, str | bool) or not 0.5 <= number < 1:  # NaN lies nowhere
        raise OptionError(f"{option} {shown(value)}: give a probability from 0.5 to below 1, as in 0.999")
    return number


def indices(option: str, value: Any) -> list[int]:
    return sorted(layer_numbers(option, value))


def dtype_name(option: str, value: Any) -> str:
    name = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
    return one_of(option, name, ("auto", *DTYPES))


def device_name(option: str, value: Any) -> str:
    name = text(option, str(value) if isinstance(value, torch.device) else value)
    choose_device(name)
    return name


def unless_none(reader: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda option, value: None if value is None else reader(option, value)


READERS: dict[str, Callable[[str, Any], Any]] = {
    "layers": partial(whole, least=1),
    "samples": partial(whole, least=1),
    "seqlen": unless_none(partial(whole, least=2)),
    "seed": partial(whole, least=0, most=LARGEST_SEED),
    "documents": flag,
    "bos": partial(one_of, choices=BOS),
    "dtype": dtype_name,
    "device": device_name,
    "metric": text,
    "compensation": text,
    "one_shot": flag,
    "fold": partial(one_of, choices=FORMS),
    "keep": indices,
    "candidates": unless_none(indices),
    "given": layer_numbers,
    "span": unless_none(partial(whole, least=1)),
    "lookahead": flag,
    "confidence": unless_none(probability),
    "parity": unless_none(partial(one_of, choices=PARITIES)),
    "attn": partial(one_of, choices=ATTENTIONS),
    "compile": partial(one_of, choices=COMPILES),
    "backend": lambda option, value: requested(None if value is None else text(option, value)),
}


def open_model(model: Any, options: PruneOptions, tokenizer: Any = None, allow_pickle: bool = False) -> ModelSource:
    """The model source of a run, with everything checked but no weights loaded. Raises :class:`OptionError` for what
    is no model, and for options of loading that ask of a model in memory what it is not."""
    flag("--allow-pickle", allow_pickle)
    in_memory = not isinstance(model, str | Path)
    if not in_memory and tokenizer is not None:
        raise OptionError("tokenizer: a model folder brings its own; leave it out")
    if tokenizer is not None and not callable(tokenizer):
        raise OptionError(f"tokenizer: give one of transformers, not {type(tokenizer).__name__}")
    model_source = open_source(
        model, dtype=options.compute_dtype, device=options.device, tokenizer=tokenizer, allow_pickle=allow_pickle,
        attention=options.attn,
    )  # fmt: skip
    if in_memory:
        _check_as_it_is(model, model_source, options)
    return model_source


def _check_as_it_is(model: Any, model_source: ModelSource, options: PruneOptions) -> None:
    """A model in memory is used where it is and as it is."""
    place = model_source.device
    wanted = place if options.device == "auto" else choose_device(options.device)
    attention = getattr(model.config, "_attn_implementation", None)
    for option, value, is_so, being in (
        ("--dtype", options.dtype, DTYPES.get(options.dtype) == model_source.dtype, model_source.dtype),
        ("--device", options.device, wanted.type == place.type and wanted.index in (None, place.index), place),
        ("--attn", options.attn, options.attn == attention, attention),
    ):
        if value != "auto" and not is_so:
            raise OptionError(
                f"{option} {value}: a model in memory is used as it is, and this one has {being}; leave it out, or "
                "give the model's folder"
            )


def check_taken(windows: Windows, samples: int, seqlen: int | None, documents: bool = False) -> None:
    """Raise :class:`OptionError` where windows that came as such are not those that were asked for."""
    for option, value, made, default in (
        ("--samples", samples, windows.count, PruneOptions.samples),
        ("--seqlen", seqlen, windows.seqlen, None),
    ):
        if value not in (default, made) and not (documents and option == "--seqlen"):
            raise OptionError(
                f"{option} {value}: {windows.source} is windows already, {windows.count} of {windows.seqlen} tokens, "
                f"and is taken as it stands; leave out {option}"
            )
