"""What is compared: ways to prune, as a grid or by name, and the texts they are measured on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecomp.compensation import COMPENSATIONS
from prunecomp.data.sources import PROTOCOLS
from prunecomp.errors import OptionError
from prunecomp.io.values import flag, one_of, shown
from prunecomp.io.values import text as name_of
from prunecomp.metrics import METRICS
from prunecomp.options import PARITIES, PruneOptions


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
    """Of the layers, to be removed."""

    def layers(self, num_layers: int) -> list[int]:
        return [max(1, int(self.share * num_layers + 0.5))]


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


def choose_arms(
    preset: Preset | None,
    metrics: Sequence[str] | None,
    compensations: Sequence[str] | None,
    one_shot: Sequence[bool] | None,
    parity: str | None,
) -> list[Arm]:
    """The arms that are asked for; what is not said comes from the preset, or is ``bi``, ``none`` and ``scale``,
    iterative."""
    if preset is None:
        arms = grid(metrics or ["bi"], compensations or ["none", "scale"], one_shot or [False], parity)
    else:
        parity = parity or preset.parity
        if compensations is None and one_shot is None:
            arms = variants(metrics or preset.metrics, preset.ways, parity)
        else:
            repairs = compensations or list(dict.fromkeys(compensation for compensation, _ in preset.ways))
            modes = one_shot or list(dict.fromkeys(mode for _, mode in preset.ways))
            arms = grid(metrics or preset.metrics, repairs, modes, parity)
    return arms


def read_grid(metrics: Any, compensations: Any, one_shot: Any, parity: Any) -> dict[str, Any]:
    """The axes of a grid as lists, None where they are not given. Raises :class:`OptionError`."""
    return {
        "metrics": _names("--metrics", metrics, METRICS),
        "compensations": _names("--compensations", compensations, COMPENSATIONS),
        "one_shot": None
        if one_shot is None
        else [flag("--one-shot", mode) for mode in _several("--one-shot", one_shot)],
        "parity": None if parity is None else one_of("--parity", parity, PARITIES),
    }


def read_arms(arms: Any, **grid: Any) -> list[Arm]:
    """Arms, each once. Raises :class:`OptionError` where a ``grid`` or a preset is given beside them."""
    for option, value in grid.items():
        if value is not None:
            raise OptionError(f"{option}: the arms say what is compared already; give one of the two")
    chosen = list(dict.fromkeys(arm for arm in _several("arms", arms) if isinstance(arm, Arm)))
    if not all(isinstance(arm, Arm) for arm in arms):
        raise OptionError("arms: give prunecomp.compare.Arm objects, as in [Arm('bi', 'scale')]")
    for arm in chosen:
        PruneOptions.of(
            layers=1, metric=arm.metric, compensation=arm.compensation, one_shot=arm.one_shot, parity=arm.parity
        )
    return chosen


def _names(option: str, values: Any, known: Mapping[str, object]) -> list[str] | None:
    if values is None:
        return None
    names = [name_of(option, value) for value in _several(option, values)]
    for name in names:
        try:
            known[name]
        except OptionError as error:
            raise OptionError(f"{option}: {error}") from error
    return names


MOST = 10_000
"""Ways to prune in one comparison, of any kind."""


def _several(option: str, values: Any) -> list[Any]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence) or not values:
        raise OptionError(f"{option} {shown(values)}: give a list with at least one entry")
    if len(values) > MOST:
        raise OptionError(f"{option}: more than {MOST:,} entries; a comparison of so many would not end")
    return list(values)


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
