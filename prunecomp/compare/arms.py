"""What is compared: ways to prune, as a grid or by name, and the texts they are measured on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

from prunecomp.compensation import COMPENSATIONS
from prunecomp.data.protocols import PROTOCOLS
from prunecomp.errors import OptionError
from prunecomp.io.values import one_of, several, shown
from prunecomp.io.values import text as name_of
from prunecomp.metrics import METRICS
from prunecomp.names import RepairName
from prunecomp.options import CompareOptions, PruneOptions


@dataclass(frozen=True)
class Arm:
    """One way to prune."""

    metric: str
    compensation: str
    one_shot: bool = False
    parity: str | None = None
    repair: str = "none"
    """Fitted whenever the arm is measured; its loop goes on from what was there before."""
    ridge: float | None = None
    """Of that fit; None is :data:`prunecomp.repair.RIDGE`."""

    @property
    def name(self) -> str:
        repair = self.repair if self.ridge is None else f"{self.repair} (ridge {self.ridge:g})"
        parts = [self.metric, *(part for part in (self.compensation, repair) if part != "none")]
        return f"{' + '.join(parts)}, {'one-shot' if self.one_shot else 'iterative'}"


class Way(NamedTuple):
    """An arm but for its metric and parity."""

    compensation: str
    one_shot: bool = False
    repair: str = "none"
    ridge: float | None = None


USUAL = (Way("none"), Way("scale"), Way("none", repair="auto"))
"""Nothing, the paper's method, and what :func:`prunecomp.prune` does by default."""


def grid(
    metrics: Iterable[str],
    compensations: Iterable[str],
    one_shot: Iterable[bool] = (False,),
    parity: str | None = None,
    repairs: Iterable[str] = ("none",),
    ridges: Iterable[float | None] = (None,),
) -> list[Arm]:
    """Every metric with every compensation and every repair in every mode, each arm once; ``ridges`` are of the
    repairs."""
    ways = [Way(compensation, repair=repair) for compensation, repair in product(compensations, repairs)]
    return variants(metrics, spread(ways, one_shot, ridges), parity)


def spread(ways: Iterable[Way], modes: Iterable[bool], ridges: Iterable[float | None]) -> list[Way]:
    """Each in every mode, and what is repaired with every ridge."""
    some, strengths = list(modes), list(ridges)
    return [
        way._replace(one_shot=one_shot, ridge=ridge)
        for way in ways
        for one_shot in some
        for ridge in ([None] if way.repair == "none" else strengths)
    ]


def variants(metrics: Iterable[str], ways: Iterable[Way], parity: str | None = None) -> list[Arm]:
    """Every metric in each of ``ways``.

    A metric that takes all layers out in one block ranks once whatever it is asked for.
    """
    some = list(ways)
    arms = [
        Arm(metric, compensation, one_shot or METRICS[metric].one_block, parity, repair, ridge)
        for metric in metrics
        for compensation, one_shot, repair, ridge in some
    ]
    return list(dict.fromkeys(arms))


@dataclass(frozen=True)
class Preset:
    """A published comparison by name: what is compared unless something else is asked for."""

    metrics: tuple[str, ...]
    ways: tuple[Way, ...]
    parity: str | None = None
    texts: tuple[str, ...] = ()
    calibration: str = "wikitext2"
    samples: int = 128
    share: float = 5 / 32
    """Of the layers, to be removed where the paper has no model of this shape."""

    def defaults(self) -> dict[str, Any]:
        """The options that are as it has them unless they are given."""
        return {"calibration": self.calibration, "samples": self.samples, "eval": list(self.texts)}

    def layers(self, config: Any) -> list[int]:
        """After how many removals to measure a model of transformers' ``config``: as published for its shape."""
        shape = (config.model_type, config.num_hidden_layers, config.hidden_size, config.vocab_size)
        published = PUBLISHED.get(shape)
        return [published or max(1, int(self.share * config.num_hidden_layers + 0.5))]


PUBLISHED = {
    ("llama", 32, 4096, 128256): 5,  # LLaMA-3-8B, as are 3.1 and the instructed ones
    ("llama", 32, 4096, 32000): 7,  # LLaMA-2-7B
    ("llama", 40, 5120, 32000): 8,  # LLaMA-2-13B
    ("qwen3", 36, 4096, 151936): 5,  # Qwen3-8B
}
"""Layers that the paper removes, by model type, layers, width and vocabulary."""


PRESETS = {
    # Prune&Comp, table 5: what ranking again and what compensation contribute.
    "paper-table5": Preset(
        metrics=("bi",),
        ways=(Way("none", True), Way("scale", True), Way("none"), Way("scale")),
        texts=("wikitext2-test",),
    ),
    # Prune&Comp's main tables: each metric as it was published, and with the method around it.
    "paper": Preset(
        metrics=("bi", "span", "ppl", "taylor", "magnitude"),
        ways=(Way("none", True), Way("scale")),
        parity="official",
        texts=("wikitext2-test", "c4-validation", "ptb-test"),
        samples=256,  # of which the published code scores on the first half
    ),
}


def arms_of(options: CompareOptions, preset: Preset | None) -> list[Arm]:
    """The arms that are asked for, each once; what is not said comes from the preset, or is ``bi`` in the :data:`USUAL`
    ways, iterative. As for :func:`prunecomp.prune`, nothing is repaired where compensations alone are named, and
    nothing put in place where repairs alone are. Raises :class:`OptionError` for names that are not known."""
    if options.both_ways and options.one_shot is not None:
        raise OptionError("--one-shot and --both-ways: give one of them")
    metrics = _names("--metrics", options.metrics, METRICS)
    compensations = _names("--compensations", options.compensations, COMPENSATIONS)
    repairs = options.repairs and [one_of("--repairs", name, get_args(RepairName)) for name in options.repairs]
    modes: Any = [False, True] if options.both_ways else options.one_shot
    asked = {"compensations": compensations, "repairs": repairs, "one_shot": modes, "ridges": options.ridges}
    if options.arms is not None:
        return read_arms(options.arms, preset=preset, metrics=metrics, parity=options.parity, **asked)
    ways = list(USUAL if preset is None else preset.ways)
    if any(value is not None for value in asked.values()):
        modes = modes or list(dict.fromkeys(way.one_shot for way in ways))
        if compensations or repairs:
            usual = ["none"] if preset is None else [way.compensation for way in ways]
            ways = [Way(each, repair=repair) for each, repair in product(compensations or usual, repairs or ["none"])]
        if options.ridges and all(way.repair == "none" for way in ways):
            raise OptionError("--ridges: none of the arms is repaired; name --repairs, or leave it out")
        ways = spread(ways, modes, options.ridges or [None])
    if preset is None:
        return variants(metrics or ["bi"], ways, options.parity)
    return variants(metrics or preset.metrics, ways, options.parity or preset.parity)


def read_arms(arms: Any, **grid: Any) -> list[Arm]:
    """Arms, each once. Raises :class:`OptionError` where a ``grid`` or a preset is given beside them."""
    for option, value in grid.items():
        if value is not None:
            raise OptionError(f"{option}: the arms say what is compared already; give one of the two")
    chosen = list(dict.fromkeys(several("arms", arms)))
    if not all(isinstance(arm, Arm) for arm in chosen):
        raise OptionError("arms: give prunecomp.compare.Arm objects, as in [Arm('bi', 'scale')]")
    read = [PruneOptions.of("prune", {"layers": 1, "calibration": "", **asdict(arm)}) for arm in chosen]
    return [replace(arm, ridge=options.ridge) for arm, options in zip(chosen, read, strict=True)]


def _names(option: str, values: Any, known: Mapping[str, object]) -> list[str] | None:
    if values is None:
        return None
    names = [name_of(option, value) for value in values]
    for name in names:
        try:
            known[name]
        except OptionError as error:
            raise OptionError(f"{option}: {error}") from error
    return names


def find_preset(name: str | None) -> Preset | None:
    """Raises :class:`OptionError` for a name that is not known."""
    return None if name is None else PRESETS[one_of("--preset", name, PRESETS)]


def named_texts(given: Any) -> dict[str, Any]:
    """Evaluation sources by the names that results go by.

    ``given`` is a source, a list of sources as text, or sources by name. A text is ``NAME=PATH`` or a source, which is
    then named after its file or itself; where NAME is that of a protocol, the file is read as it has it. Raises
    :class:`OptionError` where two have one name.
    """
    if isinstance(given, Mapping):
        for name in given:
            if not isinstance(name, str) or not name.strip():
                raise OptionError(
                    f"--eval: {shown(repr(name))} is no name; give sources by names, as in {{'mine': 'a.txt'}}"
                )
        return {name: _fed(name, source) for name, source in given.items()}
    if not isinstance(given, str | Path | list | tuple):
        return {"eval": given}
    texts: dict[str, Any] = {}
    for text in [given] if isinstance(given, str | Path) else given:
        if not isinstance(text, str | Path):
            raise OptionError("token ids need a name to go by: give eval={'name': array}")
        name, named, source = str(text).partition("=")
        if not named or os.path.isfile(text):
            source = str(text)
            name = Path(text).stem if os.path.isfile(text) else source
        if not name or not source:
            raise OptionError(f"--eval {text}: write NAME=PATH, a path, or the name of a text")
        if name in texts:
            raise OptionError(f"--eval {text}: there is a text {name} already; name this one, as in other={source}")
        texts[name] = _fed(name, source)
    return texts


def _fed(name: str, source: Any) -> Any:
    """A protocol's name and a file together, as they are read."""
    if name in PROTOCOLS and isinstance(source, str | Path) and str(source) != name:
        return f"{name}={source}"
    return source
