"""How many layers go, as it is stated: how many, how many stay, or which share of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from prunecomp.errors import OptionError
from prunecomp.io.values import layer_set, shown

PERCENT = re.compile(r"\s*([0-9]{1,3}(?:\.[0-9]{1,6})?)\s*%\s*")


@dataclass(frozen=True)
class Share:
    """A share of a model's layers that stays."""

    percent: Fraction

    def __str__(self) -> str:
        return f"{float(self.percent):g}%"

    def of(self, num_layers: int) -> int:
        """The least number of layers that is no less than this share."""
        return math.ceil(self.percent * num_layers / 100)


def kept(option: str, value: Any) -> list[int] | Share:
    """Layers that must stay, or a text as in ``"80%"``."""
    if isinstance(value, Share):
        return value
    if not isinstance(value, str) or "%" not in value:
        return layer_set(option, value)
    match = PERCENT.fullmatch(value)
    if match is None or not 0 < Fraction(match[1]) < 100:
        raise OptionError(
            f"{option} {shown(value)}: write the share of the layers that stays, as in 80%, or layers that must stay, "
            "as in 0-3,31; for both, give the share as --layers-left"
        )
    return Share(Fraction(match[1]))


def stops(option: str, value: Any) -> list[int]:
    """Numbers of layers to go, ascending: some, or a text as in ``"1-10"`` or ``"2,4,6"``."""
    wanted = sorted(set(layer_set(option, [value] if isinstance(value, int) else value)))
    if not wanted or wanted[0] < 1:
        raise OptionError(f"{option} {shown(value)}: give how many layers go, each time, as in 1-10 or 2,4,6")
    return wanted


def several_stops(given: Mapping[str, Any]) -> bool:
    """Whether a command was given more numbers of layers than one, or by the option for it."""
    layers = given.get("layers")
    text = isinstance(layers, str) and re.search("[,-]", layers) is not None
    return given.get("curve") is not None or isinstance(layers, list) or text


def stated(given: Mapping[str, Any]) -> dict[str, str]:
    """Of what was given by name, that which says how many layers go, and how a message names it."""
    share = given.get("keep")
    ways = ("layers", "layers_left", "curve", "target")
    named = {name: f"--{name.replace('_', '-')} {shown(given[name])}" for name in ways if given.get(name) is not None}
    if isinstance(share, Share) or (isinstance(share, str) and "%" in share):
        named["keep"] = f"--keep {share}"
    return named


def beside(asked: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What was ``asked`` for in a file, without that which says how many layers go, if what was ``given`` says it."""
    other = stated(asked) if stated(given) else {}
    return {name: value for name, value in asked.items() if name not in other}


def check_one(caller: str, given: Mapping[str, Any]) -> None:
    """Raise :class:`OptionError` unless what was given says just once how many layers go."""
    named = list(stated(given).values())
    if not named:
        raise OptionError(
            f"--layers: {caller} needs it, how many layers to remove; or --layers-left, how many stay, or a share that "
            "stays, as in --keep 80%"
        )
    if len(named) > 1:
        raise OptionError(f"{' and '.join(named)} each say how many layers go; give one of them")
