"""Byte-order marks are no text, and other encodings than UTF-8 are told apart from it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from prunecomp.data.sources import read_documents, read_source
from prunecomp.errors import DataError

BOM = "\ufeff".encode()
TEXT = "Größe und Maß\n\nzweiter Absatz"
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXT.split("\n\n"))


def letters(text: str) -> list[int]:
    return [ord(c) for c in text]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", BOM + TEXT.encode()),
        ("a.txt.gz", gzip.compress(BOM + TEXT.encode(), mtime=0)),
        ("a.jsonl", BOM + LINES.encode()),
        ("a.jsonl.gz", gzip.compress(BOM + LINES.encode(), mtime=0)),
        ("a.json", BOM + json.dumps([json.loads(line) for line in LINES.splitlines()]).encode()),
        ("lines.txt", BOM + LINES.encode()),
        ("joined.jsonl", b"".join(BOM + line.encode() for line in LINES.splitlines(keepends=True))),
        ("a.txt", TEXT.replace("\n", "\r\n").encode()),
        ("a.txt", TEXT.replace("\n", "\r").encode()),
    ],
)
def test_marks_and_line_ends_do_not_reach_the_tokenizer(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, f"wikitext2={tmp_path / name}"):
        assert read_source(source, letters, 2**16).tokens.tolist() == letters(TEXT)
        documents = read_documents(source, letters, 2**16).documents
        assert [document.tolist() for document in documents] == [letters(text) for text in TEXT.split("\n\n")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_other_encodings_are_refused(tmp_path: Path, name: str, encoding: str) -> None:
    content = (LINES if "jsonl" in name else TEXT).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_source(tmp_path / name, letters, 2**16)
