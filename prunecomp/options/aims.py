"""How far a run is to go, as it is stated by what comes of it: goals that are to be reached, and limits to keep to."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from prunecomp.errors import OptionError
from prunecomp.evaluation.items import GROUPS, MAKERS, PRODUCTION, RECOGNITION
from prunecomp.io.values import listed, several, shown, size

NUMBER = r"(\d{1,12}(?:\.\d{1,12})?|\.\d{1,12})"
GOALS = ("params", "size", "layers", "latency")
TASK = "task:"
COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
PROBES = {**GROUPS, **{name.replace(" ", "-"): (name,) for name in MAKERS}}
"""What a limit may be of, each with the probes that it takes together."""


@dataclass(frozen=True)
class Aim:
    """One of them; a goal is a most, and so is a limit but for ``agreement`` and those of probes, ``task:``."""

    name: str
    value: float
    text: str

    def __str__(self) -> str:
        return f"{self.name}={self.text}"

    @property
    def goal(self) -> bool:
        return self.name in GOALS

    @property
    def task(self) -> bool:
        """Whether it is a limit of probes, to what is lost of the dense model's score."""
        return self.name.startswith(TASK)

    @property
    def probes(self) -> tuple[str, ...]:
        """Whose problems it takes together."""
        return PROBES[self.name.split(":")[1]]

    @property
    def way(self) -> str:
        """In which they are asked."""
        return RECOGNITION if self.name.endswith(f":{RECOGNITION}") else PRODUCTION

    def met(self, value: float) -> bool:
        value = round(value, 9)  # 45 of 50 is 10 % less than all of them, and to a float a little more
        return value >= self.value if self.name == "agreement" or self.task else value <= self.value

    def shown(self, value: float) -> str:
        """A value of that name, as people read it."""
        if self.task:
            return f"{value:+.1%}"
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _number(
    pattern: str,
    fits: Callable[[float], bool],
    factor: Callable[[re.Match[str]], float] = lambda match: 1,
) -> Callable[[str], float | None]:
    def read(text: str) -> float | None:
        match = re.fullmatch(pattern, text, re.IGNORECASE)
        value = None if match is None else float(match[1]) * factor(match)
        return value if value is not None and fits(value) else None

    return read


READERS: dict[str, tuple[Callable[[str], float | None], str]] = {
    "params": (
        _number(NUMBER + "([KMBT]?)", lambda n: n >= 1, lambda match: COUNTS[match[2].upper()]),
        "params=6.5B, parameters at most",
    ),
    "size": (lambda text: size("size", text), "size=12GB, the export's weights at most"),
    "layers": (
        lambda text: int(text) if re.fullmatch("0*[1-9][0-9]{0,8}", text) else None,
        "layers=25, that stay at most",
    ),
    "latency": (
        _number(NUMBER + "x", lambda n: 0 < n < 1),
        "latency=0.8x, times that of all layers at most",
    ),
    "perplexity": (_number(NUMBER + "x", lambda n: n >= 1), "perplexity=1.15x, times the dense model's at most"),
    "agreement": (
        _number(NUMBER + "(%?)", lambda n: 0 < n <= 1, lambda match: 0.01 if match[2] else 1),
        "agreement=0.8, of the likeliest next token",
    ),
    "kl": (_number(NUMBER, lambda n: n > 0), "kl=0.2, nats a token at most"),
    "task": (
        _number(f"-{NUMBER}%", lambda n: -1 < n <= 0, lambda match: -0.01),
        "task:copy=-5%, of the dense model's score lost at most",
    ),
}  # fmt: skip


def aims(option: str, value: Any) -> list[Aim]:
    """Several, as in ``"params=6.5B,perplexity=1.15x"``, each by one name once."""
    found: dict[str, Aim] = {}
    for each in several(option, value):
        if isinstance(each, Aim):
            found[each.name] = each
            continue
        name, _, text = (part.strip() for part in str(each).partition("="))
        kind, colon, probe = name.partition(":")
        if kind not in READERS or (kind == "task") != bool(colon):
            known = [f"{TASK}NAME" if one == "task" else one for one in READERS]
            raise OptionError(f"{option} {shown(each)}: give {', '.join(known)}, as in perplexity=1.15x")
        if colon:
            name = TASK + _probe(f"{option} {shown(each)}", probe)
        if name in found:
            raise OptionError(f"{option} {shown(each)}: {name} is there twice; give it once")
        read, example = READERS[kind]
        number = read(text)
        if number is None:
            raise OptionError(f"{option} {shown(each)}: write it as in {example}")
        found[name] = Aim(name, number, text)
    return list(found.values())


def _probe(said: str, text: str) -> str:
    """A probe's name as it stands in an aim's, and its way, where that is not the usual one."""
    name, _, way = (part.strip().lower().replace(" ", "-") for part in text.partition(":"))
    if name not in PROBES:
        near = get_close_matches(name, PROBES, n=3) or list(PROBES)
        raise OptionError(f"{said}: no probe has that name; {TASK}NAME is one of {listed(near, len(PROBES))}")
    if way not in ("", PRODUCTION, RECOGNITION):
        raise OptionError(f"{said}: write {TASK}{name}, for {PRODUCTION}, or {TASK}{name}:{RECOGNITION}")
    return name if way in ("", PRODUCTION) else f"{name}:{way}"
