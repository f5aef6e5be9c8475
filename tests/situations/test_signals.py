"""Signals at any time: a sentence that is true, the conventional exit code, and nothing left but the journal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prunecomp.checkpoint.writer
from prunecomp.model.decoder import Decoder
from prunecomp.pruning.journal import Journal, journal_path
from tests.situations.outputs import invoke
from tests.situations.pairs import arguments, make_base

ROOT = Path(__file__).parents[2]
STARTING = "import os, signal, time\nos.kill(os.getpid(), signal.{})\ntime.sleep(30)\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    make_base(folder)
    return folder


def at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, count: int, signum: int, *, after: bool = False) -> None:
    """Have a signal come at the ``count``-th call."""
    original: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def hit(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == count and not after:
            os.kill(os.getpid(), signum)
        value = original(*args, **kwargs)
        if len(calls) == count and after:
            os.kill(os.getpid(), signum)
        return value

    monkeypatch.setattr(owner, name, hit)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("owner", "name", "count", "left"),
    [(Decoder, "call", 1, False), (Decoder, "call", 8, True), (prunecomp.checkpoint.writer, "save_file", 1, True)],
    ids=["first-round", "second-round", "writing"],
)
def test_a_signal_leaves_nothing_but_the_journal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, count: int, left: bool,
    signum: signal.Signals,
) -> None:  # fmt: skip
    out = tmp_path / "deep" / "er" / "out"
    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        at(patch, owner, name, count, signum)
        ended = invoke(*arguments(folder, out, 2))
    assert ended.exit_code == 128 + signum
    assert "no checkpoint was written" in " ".join(ended.stderr.split())
    assert list(tmp_path.rglob("*")) == ([out.parents[1], out.parent, journal_path(out)] if left else [])
    assert signal.getsignal(signum) == before
    assert invoke(*arguments(folder, out, 2, "--resume")).exit_code == 0
    assert list(out.parent.iterdir()) == [out]


def test_an_interrupt_that_comes_late_says_that_the_checkpoint_is_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        at(patch, Path, "rename", 1, signal.SIGINT, after=True)
        ended = invoke(*arguments(folder, out, 2))
    assert ended.exit_code == 130
    assert ended.stderr.strip().endswith("holds a whole checkpoint.")
    assert invoke(*arguments(folder, out, 2, "--resume")).exit_code == 0
    assert list(tmp_path.iterdir()) == [out]
    with monkeypatch.context() as patch:
        at(patch, Journal, "remove", 1, signal.SIGTERM, after=True)
        ended = invoke(*arguments(folder, tmp_path / "more", 2))
    assert ended.exit_code == 143
    assert "holds a whole checkpoint" in ended.stderr


def test_a_stopped_comparison_says_where_it_stands(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, out = folder / "tokens.npy", tmp_path / "out"
    command = ["compare", folder / "base", "--layers", "1,2", "--calibration", tokens, "--eval", tokens, "--out", out]
    with monkeypatch.context() as patch:
        at(patch, Path, "replace", 2, signal.SIGINT)
        ended = invoke(*command)
    assert ended.exit_code == 130
    assert "what is measured is in" in " ".join(ended.stderr.split())
    assert invoke(*command, "--resume").exit_code == 0


def test_commands_that_write_nothing_say_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, Decoder, "call", 1, signal.SIGINT)
    ended = invoke("score", folder / "base", "--calibration", folder / "tokens.npy")
    assert (ended.exit_code, ended.stderr.strip()) == (130, "interrupted; nothing was written.")


@pytest.mark.parametrize("way", ["module", "script", "import"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_during_the_imports_ends_the_program_alone_without_a_traceback(
    tmp_path: Path, way: str, name: str
) -> None:
    (tmp_path / "torch.py").write_text(STARTING.format(name))  # found before the real one
    (tmp_path / "prunecomp").write_text("from prunecomp.cli import main\nmain()\n")
    command = {"module": ["-m", "prunecomp"], "script": [tmp_path / "prunecomp"], "import": ["-c", "import prunecomp"]}
    search = os.pathsep.join(map(str, (tmp_path, ROOT)))
    ended = subprocess.run(
        [sys.executable, *map(str, command[way])], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": search},
    )  # fmt: skip
    if way == "import":
        assert ended.returncode == -getattr(signal, name)
    else:
        assert ended.returncode == 128 + getattr(signal, name)
        assert "nothing was begun" in ended.stderr
        assert "Traceback" not in ended.stderr
