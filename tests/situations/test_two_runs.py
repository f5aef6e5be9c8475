"""Two runs to one output, or with one journal: the first is whole, the second refused before it works."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import prunecomp
from prunecomp.checkpoint.claim import claimed
from prunecomp.checkpoint.writer import atomic_folder
from prunecomp.errors import JournalError, OutputError, PrunecompError
from prunecomp.pruning.journal import journal_path
from tests.situations.outputs import invoke
from tests.situations.pairs import arguments, make_base

PAIRS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    make_base(folder)
    return folder


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Path]:
    """An output that another process has claimed."""
    out = tmp_path / "here" / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out.parent), f".{out.name}.lock"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    yield out
    holder.kill()
    holder.communicate()


HOLD = """
import fcntl, os, sys
os.makedirs(sys.argv[1])
file = open(os.path.join(sys.argv[1], sys.argv[2]), "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_of_two_runs_at_once_one_is_whole_and_one_is_refused(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.situations.pairs", str(folder), str(PAIRS)]
    run = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    pairs = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(pairs) == PAIRS
    for pair in pairs:
        assert sorted(pair["codes"]) == [0, 7], pair
        winner = pair["codes"].index(0)
        assert pair["removed"] == [winner + 1] * 3
        assert pair["there"] == ["out"]
        assert "another run is writing" in pair["messages"][1 - winner] or "exists" in pair["messages"][1 - winner]


@pytest.mark.parametrize("command", ["prune", "compare"])
def test_a_run_is_refused_before_it_works_while_another_has_its_output(folder: Path, other: Path, command: str) -> None:
    given = arguments(folder, other, 1)
    more = [] if command == "prune" else ["--eval", folder / "tokens.npy"]
    ended = invoke(command, "/no/such/model", *given[2:], *more)  # the model is not even looked for
    assert ended.exit_code == 7
    assert "another run is writing" in ended.stderr
    assert [path.name for path in other.parent.iterdir()] == [".out.lock"]


def test_saving_is_refused_while_another_run_has_the_output(folder: Path, other: Path) -> None:
    result = prunecomp.prune(folder / "base", 1, folder / "tokens.npy", preset="paper")
    with pytest.raises(OutputError, match="another run is writing"):
        result.save(other)
    assert [path.name for path in other.parent.iterdir()] == [".out.lock"]


def test_a_journal_belongs_to_one_process(folder: Path, other: Path) -> None:
    with pytest.raises(JournalError, match="another run is writing"):
        prunecomp.prune(folder / "base", 1, folder / "tokens.npy", journal=other, preset="paper")
    assert [path.name for path in other.parent.iterdir()] == [".out.lock"]


def test_threads_of_one_process_are_two_runs(tmp_path: Path) -> None:
    refused: list[PrunecompError] = []

    def second() -> None:
        try:
            with claimed(tmp_path / "out"):
                pass
        except OutputError as error:
            refused.append(error)

    with claimed(tmp_path / "out"), claimed(tmp_path / "out"):  # the same thread is the same run
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1
    with claimed(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_a_dead_run_left_or_somebody_removed_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").write_text("")
    with claimed(tmp_path / "out"):
        (tmp_path / ".out.lock").unlink()
    with claimed(tmp_path / "out"):
        (tmp_path / ".out.lock").unlink()
        (tmp_path / ".out.lock").write_text("of another run")
    assert (tmp_path / ".out.lock").read_text() == "of another run"


def test_links_on_the_way_lead_to_the_same_output(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with claimed(tmp_path / "folder" / "out"):
        with claimed(tmp_path / "link" / "out"), claimed(tmp_path / "link" / ".." / "folder" / "out"):
            done = [path.name for path in (tmp_path / "folder").iterdir()]
    assert done == [".out.lock"]


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    number = "0123456789abcdef"
    dead, living = tmp_path / f".out.{number}.partial", tmp_path / f".out.{number[::-1]}.partial"
    others = [tmp_path / name for name in (f".o.{number}.partial", f".out.{number}.partial.x", ".out.partial",
                                           f".out.x.{number}.partial", f"out.{number}.partial")]  # fmt: skip
    for each in (dead, living, *others):
        each.mkdir()
        (each / "file").write_text("")
    descriptor = os.open(living, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with atomic_folder(tmp_path / "out"):
        pass
    os.close(descriptor)
    assert {path.name for path in tmp_path.iterdir()} == {"out", living.name, *(each.name for each in others)}


def test_a_folder_that_was_filled_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def late() -> None:
        with atomic_folder(out) as made:
            (made / "mine").write_text("")
            out.mkdir()
            (out / "theirs").write_text("")

    with pytest.raises(OutputError, match="could not be written"):
        late()
    assert [path.name for path in out.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert journal_path(out).name == ".out.journal.json"
