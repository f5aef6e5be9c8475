"""File systems that have no locks, cannot sync a folder, know no modes or no free space: runs do there what they can,
and what cannot be is told in a sentence."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

import prunecomp
from prunecomp.checkpoint.writer import atomic_folder
from prunecomp.engine.states import check_disk
from prunecomp.errors import CheckpointError, OptionError
from prunecomp.pruning.journal import write_whole
from tests.situations.small import Small, invoke, said, small

__all__ = ["small"]  # a fixture

Space = namedtuple("Space", "total used free")


def refusing(number: int) -> Any:
    def refuse(*given: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def run(small: Small, out: Path) -> Any:
    return invoke("prune", small.folder, "--layers", 1, "--calibration", small.windows, "--out", out)


@pytest.mark.parametrize("name", ["ENOLCK", "EOPNOTSUPP", "ENOSYS", "EBADF", "EINVAL", "EPERM"])
def test_where_there_are_no_locks_runs_run(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(getattr(errno, name)))
    ended = run(small, tmp_path / "out")
    assert ended.exit_code == 0, said(ended)
    assert os.listdir(tmp_path) == ["out"]


def test_a_lock_that_fails_is_a_sentence(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EIO))
    ended = run(small, tmp_path / "out")
    assert ended.exit_code == 7
    assert ".out.lock: Input/output error" in said(ended)


def test_where_there_are_no_locks_nobody_clears_away_what_may_be_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of a run that is just about to end would be gone, and it would not know."""
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    with atomic_folder(tmp_path / "out") as first:
        (first / "weights").write_text("the first's")
        _of_another_process(tmp_path / "out")
        assert (first / "weights").is_file()


def _of_another_process(out: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            with atomic_folder(out):
                raise OSError("no more")
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("name", ["EINVAL", "EOPNOTSUPP", "ENOSYS"])
@pytest.mark.parametrize("folders_only", [True, False])
def test_where_nothing_can_be_synced_results_are_written(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folders_only: bool
) -> None:
    sync, refuse = os.fsync, refusing(getattr(errno, name))
    monkeypatch.setattr(
        os, "fsync", lambda file: sync(file) if folders_only and not stat.S_ISDIR(os.fstat(file).st_mode) else refuse()
    )
    assert run(small, tmp_path / "out").exit_code == 0
    assert os.listdir(tmp_path) == ["out"]


def test_what_has_its_name_is_not_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rename is done when the folder above cannot be synced."""
    sync = os.fsync
    above = tmp_path.stat()
    monkeypatch.setattr(
        os, "fsync", lambda file: refusing(errno.EIO)() if os.path.samestat(os.fstat(file), above) else sync(file)
    )
    with atomic_folder(tmp_path / "out"):
        pass
    write_whole(tmp_path / "journal", b"a round")
    assert sorted(os.listdir(tmp_path)) == ["journal", "out"]


def test_where_there_are_no_modes_and_no_count_of_what_is_free(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "chmod", refusing(errno.EPERM))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(0, 0, 0))
    assert run(small, tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("command", ["plan", "prune"])
def test_a_disk_that_takes_no_file_is_told_before_the_work(small: Small, tmp_path: Path, command: str) -> None:
    """The one folder here that nobody can write to, whoever runs this."""
    more = [] if command == "plan" else ["--calibration", small.windows, "--out", tmp_path / "out"]
    ended = invoke(command, small.folder, "--layers", 1, "--disk", "/proc", *more)
    assert ended.exit_code == 2
    assert "--disk /proc is not writable" in said(ended)


def test_a_full_disk_can_be_planned_with(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, **options: Any) -> None: ...

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None: ...

        def close(self) -> None: ...

        write = staticmethod(refusing(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    assert prunecomp.plan(small.folder, 1, disk=tmp_path).rates.disk is None
    check_disk(tmp_path, 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_weights_that_may_not_be_read_are_there(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.folder, tmp_path / "theirs")
    os.chmod(tmp_path / "theirs" / "model.safetensors", 0o600)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        os.chmod(folder, 0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            prunecomp.evaluate(tmp_path / "theirs", small.stream)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("option", ["model", "disk", "journal"])
def test_lone_surrogates_name_no_path(small: Small, option: str) -> None:
    with pytest.raises(OptionError, match=option):
        prunecomp.prune(
            **{"model": small.folder, "layers": 1, "calibration": small.windows, option: "\ud800"}, preset="paper"
        )


def test_a_model_whose_name_is_no_utf_8_is_not_called_damaged(small: Small, tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/m\xff")
    shutil.copytree(small.folder, folder)
    with pytest.raises(OptionError, match="UTF-8"):
        prunecomp.plan(folder, 1)
    shutil.copytree(folder, tmp_path / "m\u00fc")
    prunecomp.plan(tmp_path / "m\u00fc", 1)
