"""Journals that are not what they should be, and those of others: refused in a sentence, and left alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.errors import JournalError, PrunecompWarning
from prunecomp.model.stack import Overlay
from prunecomp.pruning.journal import Journal, _digest, journal_path
from prunecomp.pruning.result import RoundRecord
from tests.situations.outputs import invoke
from tests.situations.pairs import arguments, make_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("journals")
    make_base(folder)
    return folder


def begun(folder: Path, out: Path, layers: int = 2, **options: Any) -> Path:
    """The whole journal of a run whose checkpoint was not saved."""
    journal = journal_path(out)
    prunecomp.prune(folder / "base", layers, folder / "tokens.npy", journal=journal, **options, preset="paper")
    return journal


def sealed(path: Path, change: Callable[[Any], Any]) -> None:
    """Change what a journal tells, as one who knows how it is sealed."""
    held = json.loads(path.read_text())
    held["run"] = change(held["run"]) or held["run"]
    path.write_text(json.dumps({**held, "sha256": _digest(held["run"])}))


def round_with(**changes: Any) -> Callable[[Any], Any]:
    return lambda run: run["rounds"][0].update(changes)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a scale that is a string": round_with(scale="1.5" + "\x1b[31m\x00" * 1000),
    "no scale": round_with(scale=None),
    "a scale that is no number": round_with(scale=float("nan")),
    "an infinite scale": round_with(scale=float("inf")),
    "a scale of nothing": round_with(scale=0),
    "a negative scale": round_with(scale=-1.0),
    "a layer that is not there": round_with(layer=99, block=[99]),
    "a layer below all": round_with(layer=-1, block=[-1]),
    "a layer that is true": round_with(layer=True),
    "another layer than the block's": round_with(layer=0, block=[1]),
    "no block": round_with(block=[]),
    "layers that are no neighbours": round_with(layer=0, block=[0, 2]),
    "a layer that is gone": lambda run: run["rounds"].append(run["rounds"][0]),
    "scores that are a list": round_with(scores=[]),
    "scores of no layers": round_with(scores={"x": 1.0}),
    "scores that are no numbers": round_with(scores={"1": "x"}),
    "a huge number": round_with(zero_rows=10**400),
    "a field more": round_with(more=1),
    "a round that is a number": lambda run: run.update(rounds=[1]),
    "rounds that are a string": lambda run: run.update(rounds="rounds"),
    "an identity that is a list": lambda run: run.update(identity=[]),
    "weights of no round": lambda run: run.update(weights={"7": "0"}),
    "weights of no number": lambda run: run.update(weights={"../x": "0"}),
    "weights that are a list": lambda run: run.update(weights=[1]),
    "a run that is a list": lambda run: [1],
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_journal_that_cannot_be_of_a_run_is_refused(folder: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    journal = begun(folder, out)
    sealed(journal, CHANGES[what])
    refused(folder, out, journal)


FILES = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "binary": bytes(range(256)) * 4000,
    "a long number": b'{"format": ' + b"9" * 5000 + b"}",
    "a surrogate": b'{"format": 4, "sha256": "\\ud800", "run": {}}',
    "a byte-order mark": b"\xff\xfe{\x00}\x00",
    "empty": b"",
    "null": b"null",
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_no_journal_is_refused(folder: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    journal_path(out).write_bytes(FILES[what])
    refused(folder, out, journal_path(out))


@pytest.mark.parametrize("what", ["folder", "dangling", "circle", "pipe", "device"])
def test_what_is_no_file_is_no_journal(folder: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    journal = journal_path(out)
    if what == "folder":
        journal.mkdir()
    elif what == "pipe":
        os.mkfifo(journal)
    else:
        journal.symlink_to({"dangling": "nowhere", "circle": journal.name, "device": "/dev/zero"}[what])
    refused(folder, out, journal)


def refused(folder: Path, out: Path, journal: Path) -> None:
    """With exit 9, in a sentence that can be shown, with advice that works, and nothing touched."""
    data = journal.read_bytes() if journal.is_file() else None
    for more in ([], ["--resume"]):
        ended = invoke(*arguments(folder, out, 2, *more))
        message = ended.stderr.strip()
        assert ended.exit_code == 9, message
        assert message.isprintable(), message
        assert len(message) < 600
        assert os.path.lexists(journal)
        assert data is None or journal.read_bytes() == data
        assert os.listdir(out.parent) == [journal.name]
    assert "remove it to start again" in message
    if journal.is_dir() and not journal.is_symlink():
        journal.rmdir()
    else:
        journal.unlink()
    assert invoke(*arguments(folder, out, 2)).exit_code == 0


def whole(folder: Path, out: Path) -> Path:
    """A run that was killed between the name of its checkpoint and the end of its journal."""
    journal = begun(folder, out)
    data = journal.read_bytes()
    assert invoke(*arguments(folder, out, 2, "--resume")).exit_code == 0
    journal.write_bytes(data)
    return journal


def test_a_whole_run_is_told_to_be_whole_only_if_it_is_the_one_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    journal = whole(folder, out)
    make_base(tmp_path)
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10_000] + bytes(10_000))
    others = {
        "layers": (9, arguments(folder, out, 3)),
        "model": (9, arguments(tmp_path, out, 2)),
        "no model": (3, ["prune", "/nonexistent", *arguments(folder, out, 2)[2:]]),
        "metric": (9, arguments(folder, out, 2, "--metric", "angular")),
        "fold": (9, arguments(folder, out, 2, "--fold", "down")),
        "eval": (9, arguments(folder, out, 2, "--eval", folder / "tokens.npy")),
        "recipe": (9, arguments(folder, out, 2, "--recipe")),
        "no text": (4, [word if word != str(folder / "tokens.npy") else "/none" for word in arguments(folder, out, 2)]),
    }
    before = {path: path.read_bytes() for path in (journal, *out.iterdir())}
    for what, (code, command) in others.items():
        ended = invoke(*command, "--resume")
        assert ended.exit_code == code, (what, ended.stderr)
        assert {path: path.read_bytes() for path in (journal, *out.iterdir())} == before, what
    ended = invoke(*arguments(folder, out, 2), "--resume")
    assert ended.exit_code == 0
    assert "was whole when the run was killed" in ended.stdout
    assert os.listdir(tmp_path / "out") == [path.name for path in before if path.parent == out]
    assert not journal.exists()


def test_a_whole_run_is_not_told_to_be_what_it_is_not(folder: Path, tmp_path: Path) -> None:
    """Measured on another text, not verified, or no longer there."""
    out, texts = tmp_path / "out", [tmp_path / "a.npy", tmp_path / "b.npy"]
    for text in texts:
        shutil.copy(folder / "tokens.npy", text)
    journal = begun(folder, out)
    data = journal.read_bytes()
    assert invoke(*arguments(folder, out, 2, "--resume", "--no-verify", "--eval", texts[0])).exit_code == 0
    journal.write_bytes(data)
    for more, word in (("--eval", texts[1]), "eval was"), (("--eval", texts[0]), "verify was"):
        ended = invoke(*arguments(folder, out, 2, "--resume", *more))
        assert (ended.exit_code, word in ended.stderr) == (9, True)
    same = arguments(folder, out, 2, "--resume", "--no-verify", "--eval", texts[0])
    (out / "model.safetensors").unlink()
    ended = invoke(*same)
    assert (ended.exit_code, "remove it, and give the same command" in ended.stderr) == (9, True)
    shutil.rmtree(out)
    assert invoke(*same).exit_code == 0
    assert not journal.exists()


def test_a_checkpoint_of_another_run_beside_the_journal_is_not_taken_for_its_own(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert invoke(*arguments(folder, out, 1)).exit_code == 0
    journal = begun(folder, out)
    ended = invoke(*arguments(folder, out, 2, "--resume"))
    assert ended.exit_code == 9
    assert "the checkpoint of another run" in " ".join(ended.stderr.split())
    assert journal.exists()


NAMES = ("x", "x.journal", "x.journal.json", "*", "[a]", "a", "?", "x.*", ".x", "x.0")
MADE = RoundRecord(3, 0.1, 1.25, {3: 0.1}, 7, 0, 0, 0.5, [3], 8)


def test_a_journal_removes_its_own_weights_and_nobody_elses(tmp_path: Path) -> None:
    journals = {name: Journal.open(journal_path(tmp_path / name), {"of": name}, resume=False) for name in NAMES}
    for number, journal in enumerate(journals.values()):
        for _ in range(2):
            journal.append(MADE, {2: Overlay({"mlp.weight": torch.full((2,), float(number))})})
    endings = ("json.bak", "json.00.safetensors", "json.0.safetensors.bak", "0.safetensors")
    strangers = {tmp_path / f".x.journal.{ending}" for ending in endings}
    for stranger in strangers:
        stranger.write_text("precious")
    for name in NAMES:
        journals.pop(name).remove()
        for other, journal in journals.items():
            held = Journal.open(journal_path(tmp_path / other), {"of": other}, resume=True)
            assert held.rounds == journal.rounds
            assert len(held.overlays) == 2
    assert set(tmp_path.iterdir()) == strangers


def test_a_journal_that_another_run_has_begun_since_stays(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = prunecomp.prune(folder / "base", 2, folder / "tokens.npy", journal=path, preset="paper")
    path.unlink()
    prunecomp.prune(folder / "base", 1, folder / "tokens.npy", journal=path, preset="paper")
    before = path.read_bytes()
    first.save(tmp_path / "out")
    assert path.read_bytes() == before


def test_an_export_is_none_the_worse_for_a_journal_that_cannot_be_removed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = prunecomp.prune(folder / "base", 2, folder / "tokens.npy", journal=tmp_path / "journal", preset="paper")
    assert result.on_saved is not None

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.warns(PrunecompWarning, match="stays"):
        result.on_saved()


def test_differences_are_shown_in_short(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal.open(path, {"of": "a" * 10_000, "\x1b" * 300: 1}, resume=False).append(MADE)
    with pytest.raises(JournalError) as error:
        Journal.open(path, {"of": "b" * 10_000}, resume=True)
    assert len(str(error.value)) < 900
    assert str(error.value).isprintable()
