"""Data comes in many containers, and gives the same windows in each; what is not read is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunecomp.data import files
from prunecomp.data.sources import read_documents, read_source
from prunecomp.data.windows import draw_documents, draw_windows
from prunecomp.errors import DataError
from tests.situations.data import command, model, save

DOCUMENTS = [f"document {number} speaks of {number * 7} things\nin two lines" for number in range(40)]
LINES = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in DOCUMENTS)
ARRAY = json.dumps([{"text": text} for text in DOCUMENTS], indent=2)


def letters(text: str) -> list[int]:
    return [ord(c) for c in text]


def digest(path: Path | str) -> str:
    return draw_windows(read_source(path, letters, 256), 5, 16, seed=0).digest


def digest_of_documents(path: Path | str) -> str:
    return draw_documents(read_documents(path, letters, 256), 5, 16, seed=0).digest


def parquet(texts: list[str]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": texts, "id": list(range(len(texts)))}), file)
    return file.getvalue()


CONTAINERS: dict[str, Callable[[], bytes]] = {
    "a.jsonl": LINES.encode,
    "a.JSONL": LINES.encode,
    "a.ndjson": LINES.encode,
    "a.json": ARRAY.encode,
    "lines.json": LINES.encode,
    "a.jsonl.gz": lambda: gzip.compress(LINES.encode(), mtime=0),
    "a.json.gz": lambda: gzip.compress(LINES.encode(), mtime=0),
    "array.json.gz": lambda: gzip.compress(ARRAY.encode(), mtime=0),
    "a.jsonl.bz2": lambda: bz2.compress(LINES.encode()),
    "a.jsonl.xz": lambda: lzma.compress(LINES.encode()),
    "a.parquet": lambda: parquet(DOCUMENTS),
    "a.parquet.gz": lambda: gzip.compress(parquet(DOCUMENTS), mtime=0),
    "two.jsonl.gz": lambda: gzip.compress(LINES[:500].encode(), mtime=0) + gzip.compress(LINES[500:].encode()),
    "windows.jsonl": lambda: LINES.replace("\n", "\r\n").encode(),
    # Under another name:
    "lines.txt": LINES.encode,
    "array.txt": ARRAY.encode,
    "no suffix": LINES.encode,
    "gzip.jsonl": lambda: gzip.compress(LINES.encode(), mtime=0),
    "parquet.txt": lambda: parquet(DOCUMENTS),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_documents_give_the_same_windows_in_every_container(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CONTAINERS[name]())
    text = draw_windows(read_source(np.asarray(letters("\n\n".join(DOCUMENTS))), None, 256), 5, 16, seed=0).digest
    assert digest(tmp_path / name) == text
    (tmp_path / "plain.jsonl").write_text(LINES)
    assert digest_of_documents(tmp_path / name) == digest_of_documents(tmp_path / "plain.jsonl")


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz", "a.gz", "gzip.txt", "wiki.train.raw", "a.txt.xz"])
def test_text_gives_the_same_windows_in_every_container(tmp_path: Path, name: str) -> None:
    text = "\n\n".join(DOCUMENTS)
    packs = {"a.txt.gz": gzip, "a.gz": gzip, "gzip.txt": gzip, "a.txt.xz": lzma}
    (tmp_path / name).write_bytes(packs[name].compress(text.encode()) if name in packs else text.encode())
    assert read_source(tmp_path / name, letters, 256).tokens.tolist() == letters(text)
    protocol = read_source(f"wikitext2={tmp_path / name}", letters, 256)
    assert (protocol.tokens.tolist(), protocol.share) == (letters(text), 0.9)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "npz.npy", "npy.txt", "a.npy.gz"])
def test_token_ids_are_told_by_their_bytes(tmp_path: Path, name: str) -> None:
    ids, file = np.arange(90, dtype=np.uint16), io.BytesIO()
    if "npz" in name:
        np.savez_compressed(file, ids=ids)
    else:
        np.save(file, ids)
    (tmp_path / name).write_bytes(gzip.compress(file.getvalue(), mtime=0) if name.endswith(".gz") else file.getvalue())
    assert read_source(tmp_path / name, None, 256).tokens.tolist() == list(range(90))


@pytest.mark.parametrize("name", ["c4.json.gz", "c4.parquet", "c4.json"])
def test_a_protocol_takes_as_many_documents_from_any_container(tmp_path: Path, name: str) -> None:
    texts = [f"document {number}" for number in range(1200)]
    lines = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    packed = {"c4.json.gz": lambda: gzip.compress(lines, mtime=0), "c4.parquet": lambda: parquet(texts)}
    array = json.dumps([{"text": text} for text in texts]).encode()
    (tmp_path / name).write_bytes(packed.get(name, lambda: array)())
    source = f"c4-validation={tmp_path / name}"
    assert read_source(source, letters, 256).tokens.tolist() == letters(" ".join(texts[:1100]))
    assert len(read_documents(source, letters, 256).documents) == 1100


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text")
    return file.getvalue()


def arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.arange(9), b=np.arange(9))
    return file.getvalue()


def objects() -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray([[1], None], dtype=object), allow_pickle=True)
    return file.getvalue()


REFUSED: dict[str, tuple[bytes, str]] = {
    "a.csv": (b"body,id\nsome words,1\n", r"line 2: expected an object like .*not one with \['body', 'id'\]"),
    "quote.csv": (b'text\n"some words\n', r"quote\.csv, line \d: it is no table of this kind"),
    "a.tsv": (b"text\tid\n", r"holds no text"),
    "a.yaml": (b"- text: words\n", r"\.yaml is not read"),
    "a.jsonl.zst": (b"\x28\xb5\x2f\xfd" + b"x" * 50, r"\.zst is not read"),
    "zstd.txt": (b"\x28\xb5\x2f\xfd" + b"x" * 50, "is a zstd file"),
    "pickle.txt": (pickle.dumps(["words"]), "is a pickle file"),
    "pickle.jsonl": (pickle.dumps(["words"], protocol=0), "is a pickle file"),
    "zip.txt": (zipped(), "holds no array of token ids"),
    "a.zip": (zipped(), r"\.zip is not read"),
    "page.txt": (b"<!DOCTYPE html><html>404</html>", "is a HTML file"),
    "pointer.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "two.npz": (arrays(), r"holds \['a', 'b'\]: give a file with one array"),
    "objects.npy": (objects(), r"not a readable \.npy"),
    "damaged.npy": (b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'shape': (99999999999", r"not a readable \.npy"),
    "short.npy": (b"\x93NUMPY", r"not a readable \.npy"),
    "noise.npz": (b"noise", r"not a readable \.npy"),
    "numbers.json": (b"[3, [1, 2]]", r"entry 1: expected an object like"),
    "numbers.txt": (b"[1, 2, 3]", r"entry 1: expected an object like"),
    "other.txt": (b'{"body": "words"}\n', r"line 1: expected an object like .*not one with \['body'\]"),
    "late.jsonl": (b'{"text": "fine"}\n{"text": 3}\n', "line 2: expected"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 1 cannot be read as JSON"),
    "digits.jsonl": (b'{"text": "a", "id": ' + b"1" * 4301 + b"}", "line 1 cannot be read as JSON"),
    "half.jsonl": (b'{"text": "fine"}\n{"text": "\\ud800"}\n', "line 2.*surrogate"),
    "cut.json.gz": (gzip.compress(LINES.encode(), mtime=0)[:-9], r"not a readable \.gz"),
    "empty.txt": (b"", "holds no text"),
    "empty.jsonl": (b"\n \n", "holds no text"),
    "blank.txt": (b" \n\t\n", "holds no text"),
    "none.json": (b"[]", "holds no text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_with_what_can_be(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, f"wikitext2={tmp_path / name}"):
        with pytest.raises(DataError, match=message):
            read_source(source, letters, 256)


def test_what_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST", 10_000)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a" * 20_000, mtime=0))
    np.savez_compressed(tmp_path / "a.npz", np.zeros(20_000, dtype=np.int64))
    for name in ("a.txt.gz", "a.npz"):
        with pytest.raises(DataError, match="more than 10,000 bytes"):
            read_source(tmp_path / name, letters, 256)


def test_a_zero_length_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(0, dtype=np.int64))
    with pytest.raises(DataError, match=r"a\.npy"):
        read_source(tmp_path / "a.npy", None, 256)


def test_what_is_no_file_is_told_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in {
        "empty": "is a folder, and no dataset: give a file in it",
        "file/a.txt": "cannot be read: Not a directory",
        "loop": "cannot be read: Too many levels of symbolic links",
        "x" * 300: "cannot be read: File name too long",
        "none": "no such file",
    }.items():
        with pytest.raises(DataError, match=message):
            read_source(tmp_path / name, letters, 256)


@pytest.mark.parametrize("name", ["missing.csv", "missing.xyz", "data/missing", "a b", "a/b/c", "x=y", "a\\b"])
def test_a_path_without_a_file_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="no such file"):
        read_source(name, letters, 256)


def test_the_command_line_reads_a_c4_file_as_its_lines(tmp_path: Path) -> None:
    folder = save(model(), tmp_path / "m")
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(LINES.encode(), mtime=0))
    options = ("--samples", 4, "--seqlen", 16, "--json")
    digests = {
        json.loads(command("score", folder, "--calibration", tmp_path / name, *options).stdout)["calibration_digest"]
        for name in ("a.jsonl", "a.json.gz")
    }
    assert len(digests) == 1
    (tmp_path / "a.xls").write_text("text\nsome words\n")
    refused = command("score", folder, "--calibration", tmp_path / "a.xls", *options)
    assert refused.exit_code == 4
    assert ".xls is not read; what can be is text" in refused.stderr
