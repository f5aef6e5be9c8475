"""The house rules that a test can hold: imports point one way, as ARCHITECTURE.md draws them; files stay short; and a
token takes the way that is told there."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from types import FrameType
from typing import Any

import pytest
import torch

import prunecomp
from tests.models import build, draw_tokens

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "prunecomp"
ORDER = [
    {"errors", "names"},
    {"io"},
    {"kernels"},
    {"ops"},
    {"model", "data"},
    {"engine"},
    {"compensation", "repair", "metrics", "model.source"},
    {"checkpoint"},
    {"evaluation"},
    {"options"},
    {"pruning"},
    {"api"},
    {"collect", "profiling", "stepwise"},
    {"compare"},
    {"report"},
    {"cli", "integrations"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
NOT_DRAWN = {"errors", "names", "io", "__main__"}
"""Imported from everywhere, or nowhere."""
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def house_of(module: str) -> str:
    """The package that a module belongs to, by its name below ``prunecomp``."""
    return "model.source" if module.startswith("model.source") else module.split(".")[0]


def imported_parts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunecomp"):
            module = (node.module or "").removeprefix("prunecomp").removeprefix(".")
            yield from map(house_of, [module] if module else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("prunecomp.")]
            yield from (house_of(name.removeprefix("prunecomp.")) for name in names)


def here(path: Path) -> str:
    return house_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    assert here(path) in RANK, f"{here(path)} has no place in the order of imports"
    for part in imported_parts(ast.parse(path.read_text())):
        assert part == here(path) or RANK[part] < RANK[here(path)], f"{path.name} ({here(path)}) imports {part}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_own_modules_are_not_imported_inside_functions(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            assert not list(imported_parts(function)), f"{path.name}: {function.name}"


def drawn_graph() -> list[str]:
    """The arrows between packages that no longer way stands for, as mermaid has them."""
    below: dict[str, set[str]] = {}
    for path in SOURCES:
        below.setdefault(here(path), set()).update(set(imported_parts(ast.parse(path.read_text()))) - {here(path)})
    below = {name: parts - NOT_DRAWN for name, parts in below.items() if name not in NOT_DRAWN}

    @cache
    def reached(name: str) -> frozenset[str]:
        return frozenset(below[name]).union(*(reached(part) for part in below[name]))

    arrows = [
        (name, part)
        for name in below
        for part in below[name]
        if not any(part in reached(other) for other in below[name] - {part})
    ]
    return [f"{name} --> {part}" for name, part in sorted(arrows, key=lambda arrow: (-RANK[arrow[0]], arrow))]


def test_the_picture_shows_the_imports() -> None:
    picture = re.findall(r"^\s*([\w.]+ --> [\w.]+)$", ARCHITECTURE, re.MULTILINE)
    assert picture == drawn_graph()


def told_way() -> list[tuple[str, Any]]:
    """The functions that ARCHITECTURE.md numbers, in their order."""
    return [
        (name, resolve_name(name)) for name in re.findall(r"^\d+\. `(prunecomp\.[\w.]+)`", ARCHITECTURE, re.MULTILINE)
    ]


def test_a_token_takes_the_way_that_is_told(generator: torch.Generator, tmp_path: Path) -> None:
    way = told_way()
    codes = {thing.__code__: name for name, thing in way}
    model = build("llama")
    tokens = draw_tokens(model, generator)
    entered: dict[str, None] = {}

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in codes:
            entered.setdefault(codes[frame.f_code])

    sys.setprofile(watch)
    try:
        prunecomp.prune(model, 1, calibration=tokens, preset="paper").save(tmp_path / "out")
    finally:
        sys.setprofile(None)
    assert list(entered) == [name for name, _ in way]


def test_source_files_stay_short() -> None:
    folders = ("prunecomp", "tests", "benchmarks", "examples", "kernels", "csrc")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".cpp", ".cu"}]
    assert len(files) > 40
    assert not {str(path): count for path in files if (count := len(path.read_text().splitlines())) > 400}


def test_kernels_folder_does_not_shadow_the_package_of_that_name() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
