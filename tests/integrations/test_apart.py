"""Integrations are imported by who has the tool, and use what is public."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prunecomp
import prunecomp.integrations
from tests.integrations.common import ROOT

FILES = [path for path in Path(prunecomp.integrations.__file__).parent.glob("*.py") if path.stem != "__init__"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_use_the_public_names_alone(path: Path) -> None:
    tree = ast.parse(path.read_text())
    used = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert {name for name in used if name.split(".")[0] == "prunecomp"} <= {"prunecomp.errors"}
    named = {
        node.attr for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "prunecomp"
    }  # fmt: skip
    assert named
    assert named <= set(prunecomp.__all__)


def test_the_page_says_how_long_they_are() -> None:
    page = (ROOT / "docs" / "how-to" / "integrations.md").read_text(encoding="utf-8")
    said = re.findall(r"^\| .* \| `prunecomp\.integrations\.(\w+)` \| (\d+) \|$", page, re.MULTILINE)
    assert {name: int(lines) for name, lines in said} == {p.stem: len(p.read_text().splitlines()) for p in FILES}


def test_the_package_does_not_import_them() -> None:
    program = (
        "import sys, prunecomp; [getattr(prunecomp, name) for name in prunecomp.__all__]; "
        "sys.exit(any(name.startswith('prunecomp.integrations') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
