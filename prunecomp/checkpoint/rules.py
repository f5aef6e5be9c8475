"""The rules of a ``quantization_config`` that name modules, under the numbers that layers have after pruning."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from prunecomp.checkpoint.writer import renamed
from prunecomp.errors import CheckpointError
from prunecomp.model.adapter import Family

MARK = re.compile(r"re:|[+-]:|")
"""What opens a pattern in compressed-tensors, and in the ``dynamic`` rules of GPTQModel."""

PATTERN = re.compile(r"[*+?()\[\]|^$\\{}]")
"""A character that no name has. A dot alone makes no pattern: names are full of them."""


def renumber_rules(
    stated: Any, family: Family, layers: str, renumber: Mapping[int, int], modules: Collection[str]
) -> Any:
    """``stated``, a ``quantization_config``, with the layers in its lists and keys renumbered, removed ones left out.

    ``renumber`` maps each surviving layer to its new number; ``modules`` are the names that modules have now in the
    files, and ``layers`` is the path of the layers in them. A pattern
    stays if it says of every survivor under its new name what it said under the old one, if need be with the numbers
    replaced that are spelled out in it. Raises :class:`CheckpointError` for one that picks layers in another way.
    """
    numbers = dict(renumber)
    renames = {old: new for old in modules if (new := renamed(old, layers, numbers)) is not None}
    return _walk(stated, _Rules(family, numbers, renames))


class _Rules:
    def __init__(self, family: Family, renumber: Mapping[int, int], renames: Mapping[str, str]) -> None:
        self._owner, _, leaf = family.layers.rpartition(".")
        self._numbers = re.compile(rf"(?<!\w)({re.escape(leaf)}\\?\.)(\d+)(?!\d)")
        self._renumber, self._renames = renumber, renames

    def name(self, name: str) -> str | None:
        """The module's new name, or None if its layer is gone. Layers of another tower keep theirs."""
        match = self._numbers.search(name)
        if match is None or not self._in_decoder(name[: match.start()].rstrip(".")):
            return name
        return self._respelled(name)

    def _in_decoder(self, before: str) -> bool:
        return before in ("", self._owner) or before.endswith((f".{self._owner}", "language_model"))

    def _respelled(self, text: str) -> str | None:
        if any(int(number) not in self._renumber for _, number in self._numbers.findall(text)):
            return None
        return self._numbers.sub(lambda match: f"{match[1]}{self._renumber[int(match[2])]}", text)

    def pattern(self, rule: str) -> str | None:
        """A pattern that says of survivors' new names what ``rule`` says of the old ones; None if it says nothing."""
        said = {old for old in self._renames if _says(rule, old)}
        respelled = self._respelled(rule)
        if respelled is None and not said:
            return None
        if respelled is None or any((old in said) != _says(respelled, new) for old, new in self._renames.items()):
            raise CheckpointError(
                f"quantization_config: the rule {rule!r} picks layers in a way that does not follow them to their new "
                r"numbers. Spell them out in config.json, one rule a layer (as in model\.layers\.7\..*), or have the "
                "layers that it picks, and all below them, stay (--keep)"
            )
        return respelled


def _says(rule: str, name: str) -> bool:
    try:
        return re.match(rule[MARK.match(rule).end() :], name) is not None  # type: ignore[union-attr]
    except re.error:
        return False


def _walk(stated: Any, rules: _Rules) -> Any:
    if isinstance(stated, Mapping):  # keys are patterns where they say anything of modules
        entries = {key: rules.pattern(key) for key in stated}
        return {new: _walk(stated[key], rules) for key, new in entries.items() if new is not None}
    if not isinstance(stated, list):
        return stated
    walked = [_rule(entry, rules) if isinstance(entry, str) else _walk(entry, rules) for entry in stated]
    return [new for entry, new in zip(stated, walked, strict=True) if new is not None or entry is None]


def _rule(rule: str, rules: _Rules) -> str | None:
    is_pattern = PATTERN.search(rule) or MARK.match(rule).end()  # type: ignore[union-attr]
    return rules.pattern(rule) if is_pattern else rules.name(rule)
