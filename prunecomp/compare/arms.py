"""What is compared: ways to prune, as a grid or by name, and the texts they are measured on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecomp.compensation import COMPENSATIONS
from prunecomp.data.sources import PROTOCOLS
from prunecomp.errors import OptionError
from prunecomp.io.values import one_of, several, shown
from prunecomp.io.values import text as name_of
from prunecomp.metrics import METRICS
from prunecomp.options import CompareOptions, PruneOptions


@dataclass(frozen=True)
class Arm:
    """One way to prune."""

    metric: str
    compensation: str
    one_shot: bool = False
    parity: str | None = None

    @property
    def name(self) -> str:
        repair = "" if self.compensation == "none" else f" + {self.compensation}"
        return f"{self.metric}{repair}, {'one-shot' if self.one_shot else 'iterative'}"


def grid(
    metrics: Iterable[str],
    compensations: Iterable[str],
    one_shot: Iterable[bool] = (False,),
    parity: str | None = None,
) -> list[Arm]:
    """Every metric with every compensation in every mode, each arm once."""
    modes, repairs = list(one_shot), list(compensations)
    return variants(metrics, [(repair, mode) for repair in repairs for mode in modes], parity)


def variants(metrics: Iterable[str], ways: Iterable[tuple[str, bool]], parity: str | None = None) -> list[Arm]:
    """Every metric in each of ``ways``: a compensation, and whether all is ranked at once.

    A metric that takes all layers out in one block ranks once whatever it is asked for.
    """
    pairs = list(ways)
    arms = [
        Arm(metric, compensation, one_shot or METRICS[metric].one_block, parity)
        for metric in metrics
        for compensation, one_shot in pairs
    ]
    return list(dict.fromkeys(arms))


@dataclass(frozen=True)
class Preset:
    """A published comparison by name: what is compared unless something else is asked for."""

    metrics: tuple[str, ...]
    ways: tuple[tuple[str, bool], ...]
    """Compensation, and whether one-shot."""
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
        ways=(("none", True), ("scale", True), ("none", False), ("scale", False)),
        texts=("wikitext2-test",),
    ),
    # Prune&Comp's main tables: each metric as it was published, and with the method around it.
    "paper": Preset(
        metrics=("bi", "span", "ppl", "taylor", "magnitude"),
        ways=(("none", True), ("scale", False)),
        parity="official",
        texts=("wikitext2-test", "c4-validation", "ptb-test"),
        samples=256,  # of which the published code scores on the first half
    ),
}


def arms_of(options: CompareOptions, preset: Preset | None) -> list[Arm]:
    """The arms that are asked for, each once; what is not said comes from the preset, or is ``bi``, ``none`` and
    ``scale``, iterative. Raises :class:`OptionError` for names that are not known."""
    if options.both_ways and options.one_shot is not None:
        raise OptionError("--one-shot and --both-ways: give one of them")
    metrics = _names("--metrics", options.metrics, METRICS)
    compensations = _names("--compensations", options.compensations, COMPENSATIONS)
    modes: Any = [False, True] if options.both_ways else options.one_shot
    parity: str | None = options.parity
    if options.arms is not None:
        asked = {"metrics": metrics, "compensations": compensations, "one_shot": modes, "parity": parity}
        return read_arms(options.arms, preset=preset, **asked)
    if preset is None:
        return grid(metrics or ["bi"], compensations or ["none", "scale"], modes or [False], parity)
    parity = parity or preset.parity
    if compensations is None and modes is None:
        return variants(metrics or preset.metrics, preset.ways, parity)
    repairs = compensations or list(dict.fromkeys(compensation for compensation, _ in preset.ways))
    modes = modes or list(dict.fromkeys(mode for _, mode in preset.ways))
    return grid(metrics or preset.metrics, repairs, modes, parity)


def read_arms(arms: Any, **grid: Any) -> list[Arm]:
    """Arms, each once. Raises :class:`OptionError` where a ``grid`` or a preset is given beside them."""
    for option, value in grid.items():
        if value is not None:
            raise OptionError(f"{option}: the arms say what is compared already; give one of the two")
    chosen = list(dict.fromkeys(several("arms", arms)))
    if not all(isinstance(arm, Arm) for arm in chosen):
        raise OptionError("arms: give prunecomp.compare.Arm objects, as in [Arm('bi', 'scale')]")
    for arm in chosen:
        one = {"metric": arm.metric, "compensation": arm.compensation, "one_shot": arm.one_shot, "parity": arm.parity}
        PruneOptions.of("prune", {"layers": 1, "calibration": "", **one})
    return chosen


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
