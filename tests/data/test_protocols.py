"""Evaluation texts as the published protocols have them, from local files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunecomp.data import protocols
from prunecomp.data.protocols import Protocol
from prunecomp.data.sources import read_source
from prunecomp.data.windows import consecutive_windows
from prunecomp.errors import DataError


def letters(text: str) -> list[int]:
    return [ord(c) % 97 for c in text]


def read(source: str) -> list[int]:
    tokens: list[int] = read_source(source, letters, 97).tokens.tolist()
    return tokens


def write_lines(path: Path, field: str, documents: list[str]) -> None:
    lines = "".join(json.dumps({field: document}, ensure_ascii=False) + "\n" for document in documents)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())


@pytest.mark.parametrize(
    ("name", "field", "join"),
    [("wikitext2-test", "text", "\n\n"), ("ptb-test", "sentence", " "), ("c4-validation", "text", " ")],
)
@pytest.mark.parametrize("file", ["a.jsonl", "a.json.gz", "a.parquet"])
def test_documents_are_joined_as_the_protocol_joins_them(
    tmp_path: Path, name: str, field: str, join: str, file: str
) -> None:
    documents = ["", " = Title = ", "a line that\u2028goes on", "the last"]
    if file.endswith(".parquet"):
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_dict({field: documents, "id": [1, 2, 3, 4]}).to_parquet(str(tmp_path / file))
    else:
        write_lines(tmp_path / file, field, documents)
    assert read(f"{name}={tmp_path / file}") == letters(join.join(documents))


def test_a_text_is_taken_as_it_is_joined_already(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one  two\n three \n")
    assert read(f"ptb-test={tmp_path / 'a.txt'}") == letters("one  two\n three \n")


def test_c4_takes_so_many_documents_and_windows(tmp_path: Path) -> None:
    write_lines(tmp_path / "c4.jsonl", "text", [f"document {number}" for number in range(1200)])
    source = read_source(f"c4-validation={tmp_path / 'c4.jsonl'}", letters, 97)
    assert source.tokens.tolist() == letters(" ".join(f"document {number}" for number in range(1100)))
    windows = consecutive_windows(source, 20)
    assert windows.count == 256
    assert windows.tokens.flatten().tolist() == source.tokens[: 256 * 20].tolist()
    assert consecutive_windows(source, 200).count == len(source.tokens) // 200
    np.save(tmp_path / "c4.npy", source.tokens)
    assert consecutive_windows(read_source(f"c4-validation={tmp_path / 'c4.npy'}", None, 97), 20).count == 256


def test_a_calibration_protocol_from_a_file_keeps_its_share(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a" * 100)
    assert read_source(f"wikitext2={tmp_path / 'train.txt'}", letters, 97).share == 0.9


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("c4-validation=missing.jsonl", None, r"there is no file .*missing\.jsonl; give the text as \.txt"),
        ("ptb-test=a.jsonl", b'{"text": "not the field"}\n', r'a\.jsonl, line 1: .*\{"sentence": "\.\.\."\}'),
        ("c4-validation=a.json.gz", b"not compressed", r"a\.json\.gz is not a readable \.gz file"),
        ("c4-validation=a.json.gz", gzip.compress(b"x" * 99, mtime=0)[:-9], r"a\.json\.gz is not a readable \.gz file"),
        ("wikitext2-test=a.parquet", b"nonsense", r"a\.parquet cannot be read as parquet with a column 'text'"),
        ("wikitext2-test=a.txt", b"\xff\xfe\xfa", r"a\.txt is not UTF-8 text"),
        ("wikitext-test=a.txt", b"a misspelt name", "wikitext-test=a.txt: no such file"),
    ],
)
def test_a_file_that_does_not_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, content: bytes | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(source.partition("=")[2]).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(source)


class _Datasets:
    """Stands in for the library, and notes what it is asked for."""

    def __init__(self, documents: list[str] | Exception) -> None:
        self.documents = documents
        self.asked: list[Any] = []

    def load_dataset(self, *args: Any, **kwargs: Any) -> Any:
        self.asked = [*args, kwargs]
        if isinstance(self.documents, Exception):
            raise self.documents
        return _Table(self.documents)


class _Table:
    def __init__(self, documents: list[str]) -> None:
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    def select(self, rows: range) -> _Table:
        return _Table([self.documents[row] for row in rows])

    def __getitem__(self, field: str) -> list[str]:
        return self.documents


def test_protocols_ask_for_the_published_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    library = _Datasets(["one", "two"])
    monkeypatch.setattr(protocols, "_datasets", lambda purpose: library)
    assert read("c4-validation") == letters("one two")
    assert library.asked == [
        "allenai/c4", None,
        {"split": "validation", "data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"}},
    ]  # fmt: skip
    assert read("ptb-test") == letters("one two")
    assert library.asked == ["ptb-text-only/ptb_text_only", "penn_treebank", {"split": "test"}]
    assert read("wikitext2-test") == letters("one\n\ntwo")
    assert library.asked == ["Salesforce/wikitext", "wikitext-2-raw-v1", {"split": "test"}]


def test_a_dataset_that_cannot_be_loaded_can_be_given_as_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    library = _Datasets(RuntimeError("Dataset scripts are no longer supported"))
    monkeypatch.setattr(protocols, "_datasets", lambda purpose: library)
    with pytest.raises(DataError, match=r"no longer supported; it can be given as a file, as in ptb-test=text\.txt"):
        read("ptb-test")


def test_a_protocol_joins_no_more_documents_than_it_takes() -> None:
    assert Protocol("d", "", "s", "f", join="-", documents=2).joined(iter("abc")) == "a-b"
