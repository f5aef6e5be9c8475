"""The house rules that a test can hold: imports point one way, files stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "prunecomp"
ORDER = [
    {"errors", "starting"},
    {"escape", "values"},
    {"plain"},
    {"registry"},
    {"kernels"},
    {"ops"},
    {"model", "data"},
    {"engine"},
    {"compensation", "evaluation"},
    {"metrics"},
    {"subject"},
    {"checkpoint"},
    {"options"},
    {"result", "inputs"},
    {"pruner", "journal"},
    {"plan"},
    {"api"},
    {"collect", "stepwise"},
    {"compare"},
    {"report"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported_parts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunecomp"):
            module = node.module or ""
            parts = module.split(".")[1:2] or [alias.name for alias in node.names]
            yield from parts
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("prunecomp."))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert here in RANK, f"{here} has no place in the order of imports"
    for part in imported_parts(ast.parse(path.read_text())):
        assert part == here or RANK[part] < RANK[here], f"{path.name} ({here}) imports {part}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_own_modules_are_not_imported_inside_functions(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            assert not list(imported_parts(function)), f"{path.name}: {function.name}"


def test_source_files_stay_short() -> None:
    folders = ("prunecomp", "tests", "benchmarks", "examples", "kernels", "csrc")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".cpp", ".cu"}]
    assert len(files) > 40
    assert not {str(path): count for path in files if (count := len(path.read_text().splitlines())) > 400}


def test_kernels_folder_does_not_shadow_the_package_of_that_name() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
