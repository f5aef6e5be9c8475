"""Docstrings as Markdown: lists of parameters, references and examples, as they are written in this package."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import griffe

FRONT = Path(__file__).resolve().parents[2] / "prunecomp" / "__init__.py"
ROLE = re.compile(r":\w+:`~?([\w.]+)`")
HEADING = re.compile(r"^(\w+)\n-{3,}\n((?:.+\n?)+)", re.MULTILINE)
ENTRY = re.compile(r"^(\*{0,2}\w[\w, *]*?) : ", re.MULTILINE)
HOMES = {"compare": "compare.api.compare", "collect": "collect.collect"}
"""Functions that go by the name of a module."""
EXAMPLE = re.compile(r"(?:^>>> .*\n(?:.+\n)*)+", re.MULTILINE)


def public() -> set[str]:
    """The names in ``__all__``, read without an import."""
    for node in ast.parse(FRONT.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    raise LookupError("__all__")


PUBLIC = public()


def markdown(text: str) -> str:
    """A docstring for the site."""
    text = HEADING.sub(lambda found: f"**{found[1]}**\n\n{entries(found[2])}\n", text + "\n")
    text = EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}```\n", text)
    return ROLE.sub(lambda found: referred(found[1]), text)


def entries(text: str) -> str:
    """Lines ``name : meaning``, with what follows them indented, as a list."""
    parts = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    return "\n".join("- " + ENTRY.sub(r"`\1`: ", dedent(part)).strip() for part in parts if part.strip())


def referred(name: str) -> str:
    short = name.removeprefix("prunecomp.")
    return (
        f"[`{name}`][prunecomp.{HOMES.get(short, short)}]"
        if short in PUBLIC - {"errors", "__version__"}
        else f"`{name}`"
    )


class AsMarkdown(griffe.Extension):
    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
