"""Standard streams that are closed, full, broken or narrow: a finished export stays one, and there is no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from prunecomp.io.starting import tolerant, unwritten
from tests.situations.pairs import arguments, make_base

ROOT = Path(__file__).parents[2]
KINDS = ("closed", "full", "broken", "ascii")
WAYS = [(out, "file") for out in KINDS] + [("full", "closed"), ("broken", "full"), ("closed", "broken")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    make_base(folder)
    return folder


def cases(folder: Path) -> list[dict[str, Any]]:
    base, tokens = str(folder / "base"), str(folder / "tokens.npy")
    listed = []
    for out, err in WAYS:
        commands = {
            "prune": arguments(folder, folder / f"{out}-{err}", 1),
            "prune --json": arguments(folder, folder / f"{out}-{err}-json", 1, "--json"),
            "score": ["score", base, "--calibration", tokens],
            "info": ["info", base],
            "help": ["--help"],
            "no model": ["info", "/no/such/mödel"],
            "no option": ["score", base, "--nö"],
        }
        if err != "file":
            commands = {name: commands[name] for name in ("prune", "score")}
        listed += [{"name": n, "arguments": a, "stdout": out, "stderr": err} for n, a in commands.items()]
    return listed


@pytest.fixture(scope="module")
def endings(folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    asked = cases(folder)
    run = subprocess.run(
        [sys.executable, "-m", "tests.situations.streams", str(folder)], input=json.dumps(asked),
        capture_output=True, text=True, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return list(zip(asked, json.loads(run.stdout), strict=True))


def expected(case: dict[str, Any]) -> int:
    codes = {"no model": 3, "no option": 2}
    told_alone = case["name"].split()[0] in ("score", "info")  # what they print is all that they make
    return codes.get(case["name"], 7 if case["stdout"] == "full" and told_alone else 0)


def test_every_command_ends_as_it_should_whatever_its_streams(endings: Any) -> None:
    wrong = [(case, end) for case, end in endings if end["code"] != expected(case) or "Traceback" in end["stderr"]]
    assert not wrong


def test_an_export_is_whole_whoever_listens(folder: Path, endings: Any) -> None:
    for out, err in WAYS:
        for name in (f"{out}-{err}", *([f"{out}-{err}-json"] if err == "file" else [])):
            assert json.loads((folder / name / "config.json").read_text())["num_hidden_layers"] == 5
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_what_did_not_arrive_is_told(endings: Any) -> None:
    full = [(case["name"], end["stderr"]) for case, end in endings if case["stdout"] == "full" and end["stderr"]]
    told = {name: stderr for name, stderr in full if "standard output could not be written to" in stderr}
    assert {"prune", "prune --json", "score", "info"} <= set(told)
    assert "is whole" in told["prune"]
    assert "error: OutputError" in told["score"]


def test_narrow_streams_get_everything_in_their_characters(endings: Any) -> None:
    restrict = {case["name"]: end["stdout"] for case, end in endings if case["stdout"] == "ascii"}
    assert all(text.isascii() for text in restrict.values())
    assert "Usage: prunecomp" in restrict["help"]
    assert "1 of 6 layers removed" in restrict["prune"]


def test_a_stream_that_is_closed_from_the_start_is_no_place_for_a_file(folder: Path) -> None:
    command = [sys.executable, "-m", "prunecomp", "score", str(folder / "base"), "--calibration",
               str(folder / "tokens.npy")]  # fmt: skip
    ended = subprocess.run(["sh", "-c", 'exec "$@" <&- >&-', "sh", *command], cwd=ROOT, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_pipe_that_does_not_wait_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    told, heard = "word " * 100_000, bytearray()

    def listen() -> None:
        while part := os.read(reader, 2**16):
            heard.extend(part)

    listener = threading.Thread(target=listen)
    with open(writer, "w") as stream:
        out = tolerant(stream)
        listener.start()
        out.write(told)
        assert unwritten(out) is None
    listener.join()
    os.close(reader)
    assert heard.decode() == told
