"""Outputs that cannot be: told before the work, and nothing is left where something fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import prunecomp
import prunecomp.checkpoint.writer as writer
from prunecomp.checkpoint.claim import LONGEST_SUFFIX
from prunecomp.engine.placement import Memory, ModelShape, Placement, place
from prunecomp.engine.run import check_capacity
from prunecomp.engine.states import Tier
from prunecomp.errors import OptionError, OutputError
from prunecomp.io.values import LONGEST_NAME
from prunecomp.pruning.journal import journal_path, write_whole
from tests.situations.outputs import invoke
from tests.situations.pairs import arguments, make_base

LONGEST = LONGEST_NAME - LONGEST_SUFFIX


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    make_base(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with all kinds of things in it."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TARGETS = {
    "a name of 256 bytes": "x" * 256,
    "a name whose hidden siblings would be too long": "x" * (LONGEST + 1),
    "a long name of wide characters": "ö" * 128,
    "a long path": "/".join(["x" * 100] * 60),
    "a long folder": "y" * 256 + "/out",
    "no UTF-8": os.fsdecode(b"\xff\xfe"),
    "a folder that is no UTF-8": os.fsdecode(b"\xff/out"),
    "a dangling link": "dangling",
    "a link in a circle": "round",
    "a link to an empty folder": "link",
    "below a link in a circle": "round/out",
    "below a file": "file/out",
    "deep below a file": "file/deep/er/out",
    "a file": "file",
    "a pipe": "pipe",
    "nothing": "",
    "here": ".",
    "above": "..",
    "above something": "empty/..",
    "the root": "/",
    "the slash of a file": "file/",
    "where nothing can be made": "/proc/out",
    "a device": "/dev/null",
}


@pytest.mark.parametrize("command", ["prune", "compare"])
@pytest.mark.parametrize("what", TARGETS)
def test_an_output_that_cannot_be_is_told_before_the_work(here: Path, what: str, command: str) -> None:
    before = sorted(os.listdir(here))
    more = ["--eval", "no.npy"] if command == "compare" else []
    ended = invoke(command, "/no/model", "--layers", 1, "--calibration", "no.npy", "--out", TARGETS[what], *more)
    assert ended.exit_code == 7, ended.stderr  # the model would be exit 3
    assert "--out" in ended.stderr
    assert len(ended.stderr) < 1000
    assert sorted(os.listdir(here)) == before


@pytest.mark.parametrize(
    "target", ["slash/", "empty", "empty/", "new/../deep", "ö" * (LONGEST // 2), "a\nb", "-x", "*", "[a]"]
)
def test_an_output_that_can_be_becomes_one(folder: Path, here: Path, target: str) -> None:
    before = {*os.listdir(here), Path(os.path.normpath(target)).name}
    assert invoke(*arguments(folder, Path("x"), 1)[:-1], target).exit_code == 0
    assert (here / target).resolve().is_dir()
    assert set(os.listdir(here)) == before


def test_saving_tells_an_output_that_cannot_be(folder: Path, here: Path) -> None:
    result = prunecomp.prune(folder / "base", 1, folder / "tokens.npy", preset="paper")
    for target in (*TARGETS.values(), "null\0byte"):
        with pytest.raises(OutputError, match="--out"):
            result.save(target)


def test_a_folder_where_a_file_system_is_mounted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="mounted"):
        writer.check_output(tmp_path / "out")


def test_a_folder_that_may_not_be_written_to_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **more: Path(path) != tmp_path)  # root may always
    assert invoke(*arguments(folder, tmp_path / "deep" / "out", 1)).exit_code == 7
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [["--layers", 7], ["--calibration", "/no/text"], ["--metric", "magic"], ["--device-memory", "1KB"]],
    ids=str,
)
def test_what_fails_before_the_first_round_leaves_nothing(folder: Path, tmp_path: Path, change: list[Any]) -> None:
    out = tmp_path / "deep" / "er" / "out"
    assert invoke(*arguments(folder, out, 2, *change)).exit_code in (2, 4)
    assert not list(tmp_path.iterdir())


FULL = [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")]


@pytest.mark.parametrize("error", FULL, ids=["os", "safetensors"])
def test_a_disk_that_fills_up_leaves_no_partial_export(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    out = tmp_path / "deep" / "out"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "save_file", lambda tensors, path, metadata: (path.write_text("half"), _raise(error)))
        ended = invoke(*arguments(folder, out, 2))
    assert ended.exit_code == 7
    assert "No space left" in ended.stderr
    assert list(out.parent.iterdir()) == [journal_path(out)]
    assert invoke(*arguments(folder, out, 2, "--resume")).exit_code == 0


def test_a_disk_that_fills_up_leaves_no_partial_journal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: _raise(FULL[0]))
    for command, code in (("prune", 9), ("compare", 7)):
        given = arguments(folder, tmp_path / "deep" / "out", 2)[1:]
        if command == "compare":
            given = [each for each in given if each not in ("--preset", "paper")]
            given += ["--eval", str(folder / "tokens.npy")]
        ended = invoke(command, *given)
        assert (ended.exit_code, list(tmp_path.iterdir())) == (code, [])
        assert "No space left" in ended.stderr
    (tmp_path / "whole").write_text("before")
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "whole", b"after")
    monkeypatch.setattr(os, "fsync", fsync)
    assert (tmp_path / "whole").read_text() == "before"
    assert os.listdir(tmp_path) == ["whole"]


def _raise(error: Exception) -> None:
    raise error


def test_everything_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(writer, "sync", lambda path: synced.append(path.name))
    monkeypatch.setattr(writer, "sync_name", lambda path: synced.append(path.parent.name))
    with writer.atomic_folder(tmp_path / "out") as made:
        (made / "deep" / "er").mkdir(parents=True)
        (made / "deep" / "er" / "file").write_text("")
        (made / "file").write_text("")
    assert sorted(synced[:-2]) == ["deep", "er", "file", "file"]
    assert synced[-1] == tmp_path.name


@pytest.mark.parametrize("disk", ["", "/no/such/folder", "file", "x" * 300, "null\0byte", os.fsdecode(b"\xff")])
def test_a_disk_that_cannot_be_is_told_before_the_work(folder: Path, here: Path, disk: str) -> None:
    base, tokens = folder / "base", folder / "tokens.npy"
    with pytest.raises(OptionError, match="--disk"):
        prunecomp.prune(base, 1, tokens, disk=disk, preset="paper")
    if "\0" not in disk:
        for command in (["prune", base, "--layers", 1, "--calibration", tokens, "--out", "out"],
                        ["plan", base, "--layers", 1], ["eval", base, "--eval", tokens]):  # fmt: skip
            assert invoke(*command, "--disk", disk).exit_code == 2
    assert "out" not in os.listdir(here)


@pytest.mark.parametrize("given", [True, False])
def test_advice_on_disk_minds_the_disk_that_was_given(tmp_path: Path, given: bool) -> None:
    folder = tmp_path if given else None
    advice = f"give a --disk with more space than {tmp_path}," if given else "give --disk DIR,"
    shape = ModelShape(4, 16, 100, 100, 1, 16, 16, 4)
    with pytest.raises(OptionError, match=advice):
        check_capacity(1, Placement(1, None, {}, Tier.host, {}, folder), torch.device("cpu"))
    with pytest.raises(OptionError, match=advice):
        place(shape, 100, 16, Memory(33_000, disk_folder=folder), torch.device("cpu"), resident=False)
