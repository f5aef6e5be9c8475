"""Fixtures of the tests of integrations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.interop.exports import read
from benchmarks.interop.report import Finding
from tests.integrations.common import ROOT, UNREPAIRED, Tensors, cli_export, differing

NOT_OURS = "tensors that are not those of prunecomp prune"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which the page's relative names are what a reader has in a checkout."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What our command line writes."""
    return cli_export(tmp_path_factory.mktemp("cli") / "out")


@pytest.fixture(scope="session")
def unrepaired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The control: the same layers are gone, and nothing is in their place."""
    return cli_export(tmp_path_factory.mktemp("cli") / "out", **UNREPAIRED)


@pytest.fixture
def row(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Asserts a comparison, whose record ``make interop`` has in its table: a Finding without its first field."""

    def compare(*fields: object, values: str = "") -> None:
        finding = Finding("", *fields, values=values)  # type: ignore[arg-type]
        record_property("finding", finding)
        assert finding.passed, finding

    return compare


@pytest.fixture
def check_equal(row: Callable[..., None]) -> Callable[..., None]:
    """A row of tensors that are to be those of another export, bit for bit, and are not those of a control."""

    def check(what: str, found: Tensors, meant: Path, control: Path, compared: str = NOT_OURS) -> None:
        right, wrong = read(meant), read(control)
        row(what, compared, differing(found, right), 0, differing(found, wrong), values=f"{len(right)} tensors")

    return check
