"""What can be read once is read once: standard input, pipes and their file descriptors."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import prunecomp
from prunecomp.data.sources import check_read_once, read_source
from prunecomp.errors import DataError
from tests.situations.data import command, model, save

TEXT = "A pipe gives its words once, and then no more.\n\n" * 60


def letters(text: str) -> list[int]:
    return [ord(c) for c in text]


@contextmanager
def pipe(content: bytes) -> Iterator[str]:
    """A file descriptor as the shell's <(...) gives one."""
    out, into = os.pipe()

    def write() -> None:
        with os.fdopen(into, "wb") as file:
            file.write(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield f"/dev/fd/{out}"
    finally:
        os.close(out)
        writer.join()


@pytest.mark.parametrize("content", [TEXT.encode(), gzip.compress(TEXT.encode(), mtime=0)], ids=["plain", "packed"])
def test_a_pipe_gives_what_a_file_gives(content: bytes) -> None:
    with pipe(content) as path:
        assert read_source(path, letters, 256).tokens.tolist() == letters(TEXT)
    with pipe(content) as path:
        assert read_source(f"wikitext2={path}", letters, 256).tokens.tolist() == letters(TEXT)


def test_a_pipe_is_told_by_its_content(tmp_path: Path) -> None:
    with pipe(b'{"text": "one"}\n{"text": "two"}\n') as path:
        assert read_source(path, letters, 256).tokens.tolist() == letters("one\n\ntwo")
    np.save(tmp_path / "ids.npy", np.arange(40))
    with pipe((tmp_path / "ids.npy").read_bytes()) as path:
        assert read_source(path, None, 256).tokens.tolist() == list(range(40))


def test_a_named_pipe_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=(tmp_path / "fifo").write_text, args=(TEXT,))
    writer.start()
    assert read_source(tmp_path / "fifo", letters, 256).tokens.tolist() == letters(TEXT)
    writer.join()


def test_standard_input_is_read_by_every_command(tmp_path: Path) -> None:
    folder = save(model(), tmp_path / "m")
    (tmp_path / "a.txt").write_text(TEXT)
    options = ("--samples", 4, "--seqlen", 16, "--json")
    digests = set()
    for source in ("-", tmp_path / "a.txt"):
        result = command("score", folder, "--calibration", source, *options, stdin=TEXT)
        assert result.exit_code == 0, result.stderr
        digests.add(json.loads(result.stdout)["calibration_digest"])
    assert len(digests) == 1
    result = command("eval", folder, "--eval", "-", "--seqlen", 16, "--json", stdin=TEXT)
    assert json.loads(result.stdout)["perplexity"] == prunecomp.evaluate(folder, tmp_path / "a.txt", seqlen=16)


def test_one_pipe_for_two_texts_is_told_before_it_is_read(tmp_path: Path) -> None:
    folder = save(model(), tmp_path / "m")
    with pipe(TEXT.encode()) as path:
        for other in (path, f"wikitext2={path}"):
            with pytest.raises(DataError, match=f"it is a pipe that {path} reads too, and can be read once"):
                prunecomp.prune(folder, 1, path, eval=other, samples=2, seqlen=8, preset="paper")
        with pytest.raises(DataError, match="can be read once"):
            prunecomp.compare(folder, [1], IDS, eval={"a": path, "b": path}, samples=2, seqlen=8)
        assert len(read_source(path, letters, 256).tokens) == len(TEXT), "nothing was lost"


def test_files_may_be_given_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    check_read_once([tmp_path / "a.txt", tmp_path / "a.txt", IDS, None, "wikitext2", "wikitext2", "/dev/fd/987"])


def test_devices_without_an_end_are_refused() -> None:
    for device in ("/dev/zero", "/dev/urandom"):
        with pytest.raises(DataError, match="is not UTF-8 text"):
            read_source(device, letters, 256)
    with pytest.raises(DataError, match="/dev/null holds no text"):
        read_source("/dev/null", letters, 256)


IDS = np.arange(400) % 97
