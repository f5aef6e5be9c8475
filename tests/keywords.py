"""Writes ``prunecomp/options/keywords.py``, the keywords of the functions as types, from where options are declared.

``python -m tests.keywords``; a test says where it is due.
"""

from __future__ import annotations

import re
from pathlib import Path

import prunecomp.names
import prunecomp.options
from prunecomp.options import CompareOptions, Option, PruneOptions

FILE = Path(prunecomp.options.__file__).with_name("keywords.py")
POSITIONAL = {"prune": {"layers", "calibration"}, "plan": {"layers"}, "evaluate": {"eval"}, "profile": {"eval"},
              "compare": {"layers", "calibration"}}  # fmt: skip
FUNCTIONS = ("evaluate", "profile", "collect", "pruner_for", "score", "prune", "plan", "compare")
HEAD = '''"""The keywords of the functions, typed for editors and type checkers; written from where they are declared.

``python -m tests.keywords`` writes this file. A metric or a compensation that another package adds has a name that is
in no ``Literal``: for it, ``typing.cast``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from prunecomp.engine.progress import Progress
from prunecomp.names import {names}

if TYPE_CHECKING:
    import torch
'''


def keywords(function: str) -> dict[str, Option]:
    """What a function takes beside its positional parameters."""
    options = CompareOptions if function == "compare" else PruneOptions
    left_out = POSITIONAL.get(function, {"calibration"})
    return {each.name: each for each in options.options(function, "python") if each.name not in left_out}


def annotation(option: Option) -> str:
    return option.told.takes or str(option.field.type)


def written() -> str:
    """The file as it should be."""
    names = sorted(name for name in vars(prunecomp.names) if name[0].isupper() and not name.isupper())
    done: dict[str, dict[str, str]] = {}
    text = ""
    for function in FUNCTIONS:
        mine = {name: annotation(each) for name, each in keywords(function).items()}
        bases = [other for other, theirs in done.items() if theirs.items() <= mine.items()]
        base = max(bases, key=lambda other: len(done[other]), default=None)
        inherited = done[base] if base else {}
        own = "".join(f"    {name}: {kind}\n" for name, kind in mine.items() if name not in inherited)
        text += f"\n\nclass {title(function)}({title(base) if base else 'TypedDict'}, total=False):\n"
        text += f'    """Of :func:`prunecomp.{function}`."""\n\n{own}'
        done[function] = mine
    used = [name for name in names if re.search(rf"\b{name}\b", text) and name != "Literal"]
    return HEAD.replace("{names}", "(\n" + "".join(f"    {name},\n" for name in used) + ")") + text


def title(function: str) -> str:
    return "".join(part.title() for part in function.split("_")) + "Keywords"


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
