"""How far a run is to go, as it is stated by what comes of it: goals that are to be reached, and limits to keep to."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prunecomp.errors import OptionError
from prunecomp.io.values import several, shown, size

NUMBER = r"(\d{1,12}(?:\.\d{1,12})?|\.\d{1,12})"
GOALS = ("params", "size", "layers")
COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Aim:
    """One of them; a goal is a most, and so is a limit but for ``agreement``."""

    name: str
    value: float
    text: str

    def __str__(self) -> str:
        return f"{self.name}={self.text}"

    @property
    def goal(self) -> bool:
        return self.name in GOALS

    def met(self, value: float) -> bool:
        return value >= self.value if self.name == "agreement" else value <= self.value


def _number(pattern: str, factor: Callable[[re.Match[str]], float] = lambda match: 1) -> Callable[[str], float | None]:
    def read(text: str) -> float | None:
        match = re.fullmatch(NUMBER + pattern, text, re.IGNORECASE)
        return None if match is None else float(match[1]) * factor(match)

    return read


READERS: dict[str, tuple[Callable[[str], float | None], str]] = {
    "params": (_number("([KMBT]?)", lambda match: COUNTS[match[2].upper()]), "params=6.5B, parameters at most"),
    "size": (lambda text: size("size", text), "size=12GB, the export's weights at most"),
    "layers": (lambda text: int(text) if re.fullmatch("[0-9]{1,9}", text) else None, "layers=25, that stay at most"),
    "perplexity": (_number("x"), "perplexity=1.15x, times the dense model's at most"),
    "agreement": (_number("(%?)", lambda match: 0.01 if match[2] else 1), "agreement=0.8, of the likeliest next token"),
    "kl": (_number(""), "kl=0.2, nats a token at most"),
}


def aims(option: str, value: Any) -> list[Aim]:
    """Several, as in ``"params=6.5B,perplexity=1.15x"``, each by one name once."""
    found: dict[str, Aim] = {}
    for each in several(option, value):
        if isinstance(each, Aim):
            found[each.name] = each
            continue
        name, _, text = (part.strip() for part in str(each).partition("="))
        if name not in READERS:
            raise OptionError(f"{option} {shown(each)}: give {', '.join(READERS)}, as in perplexity=1.15x")
        if name in found:
            raise OptionError(f"{option} {shown(each)}: {name} is there twice; give it once")
        read, example = READERS[name]
        number = read(text)
        least = 1 if name in ("perplexity", "layers", "params") else 0
        if number is None or number < least or number <= 0 or (name == "agreement" and number > 1):
            raise OptionError(f"{option} {shown(each)}: write it as in {example}")
        found[name] = Aim(name, number, text)
    return list(found.values())
