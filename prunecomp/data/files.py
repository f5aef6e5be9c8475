"""What a file holds, told by its bytes as well as by its name: token ids, documents, or one text."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from prunecomp.errors import DataError
from prunecomp.io.plain import parse_json

Content = np.ndarray | list[str] | str
"""Token ids, documents, or one text."""

STDIN = "-"
LARGEST = 2**31
"""Bytes of text. A tokenizer takes several times as much for a text of one piece; token files may be larger."""
CHUNK = 2**20
READABLE = (
    "text (.txt), objects with a text in each line or in one array (.jsonl, .json), parquet, each of them also "
    "compressed (.gz, .bz2, .xz), and token ids (.npy, .npz)"
)
JSON = (".jsonl", ".json", ".ndjson")
PACKED: dict[str, tuple[Any, re.Pattern[bytes]]] = {
    ".gz": (gzip.open, re.compile(rb"\x1f\x8b")),
    ".bz2": (bz2.open, re.compile(rb"BZh[1-9]1AY&SY")),
    ".xz": (lzma.open, re.compile(rb"\xfd7zXZ\x00")),
}
NPY, ZIP, PARQUET = b"\x93NUMPY", b"PK\x03\x04", b"PAR1"
FOREIGN = {
    "zstd": rb"\x28\xb5\x2f\xfd",
    "LZ4": rb"\x04\x22\x4d\x18",
    "7-Zip": rb"7z\xbc\xaf\x27\x1c",
    "pickle": rb"\x80[\x02-\x05]|\((?:lp|dp)0\n",
    "Arrow": rb"ARROW1",
    "Avro": rb"Obj\x01",
    "ORC": rb"ORC[\x00-\x20]",
    "HDF5": rb"\x89HDF",
    "SQLite": rb"SQLite format 3\x00",
    "PDF": rb"%PDF-",
    "RTF": rb"\{\\rtf",
    "HTML": rb"(?i:\s*<!doctype html|\s*<html)",
    "XML": rb"(?:\xef\xbb\xbf)?\s*<\?xml",
    "Git LFS pointer": rb"version https://git-lfs",
}
"""How files begin that are no text, or no prose, and that nothing here reads."""
FOREIGN_SUFFIXES = (
    *(".csv", ".tsv", ".xml", ".html", ".htm", ".yaml", ".yml", ".ipynb", ".rtf", ".pdf", ".doc", ".docx", ".epub"),
    *(".xls", ".xlsx", ".zip", ".zst", ".lz4", ".7z", ".rar", ".tar", ".tgz", ".arrow", ".feather", ".orc", ".avro"),
    *(".hdf5", ".h5", ".db", ".sqlite", ".msgpack", ".pickle", ".pkl", ".pt", ".pth", ".bin", ".safetensors"),
)
"""Text or not, it is not prose alone."""
SUFFIXES = (".txt", ".md", ".text", ".npy", ".npz", ".parquet", *JSON, *PACKED, *FOREIGN_SUFFIXES)
"""What ends in one of these is the name of a file, and of no dataset."""
UTF_16 = re.compile(rb"\xff\xfe|\xfe\xff|\x00\x00\xfe\xff|[^\x00]\x00[^\x00]\x00|\x00[^\x00]\x00[^\x00]")
OBJECT = re.compile(r'\s*(\[\s*)?\{\s*("(?:[^"\\]|\\.)*"\s*:|\}\s*$)')
"""How JSON with objects begins, and no prose."""


def read_file(path: str, name: str, field: str = "text", most: int | None = None) -> Content:
    """What the file, pipe or device ``path`` holds, ``-`` being standard input; it is opened and read once.

    ``name`` stands for it in errors. Documents are the strings in ``field`` of the objects in a JSON or parquet file,
    no more than ``most`` of them. Raises :class:`DataError` for what cannot be read, or is nothing that is read here.
    """
    suffix, packed = kind_of_name(path)
    if suffix in FOREIGN_SUFFIXES:
        raise DataError(f"{name}: {suffix} is not read; what can be is {READABLE}")
    try:
        return _content(path, name, suffix, packed, field, most)
    except OSError as error:
        raise DataError(unreadable(name, error)) from None
    except MemoryError:
        raise DataError(f"{name} is larger than memory: give a part of it, or its token ids as .npy") from None


def _content(path: str, name: str, suffix: str, packed: str | None, field: str, most: int | None) -> Content:
    binary = suffix in (".npy", ".npz", ".parquet")
    with opened(path, name) as file:
        if path != STDIN and stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            if file.read(len(NPY)) == NPY:  # it may be larger than memory
                return _load_array(Path(path), name)
            file.seek(0)
        data = _read(file, name, binary or packed is not None)
    for ending, (unpack, magic) in PACKED.items():
        if magic.match(data) or ending == packed:
            try:
                with unpack(io.BytesIO(data)) as stream:
                    data = _read(stream, name, binary)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise DataError(f"{name} is not a readable {ending} file: {error}") from None
            break
    if data.startswith((NPY, ZIP)) or suffix in (".npy", ".npz"):
        return _load_array(io.BytesIO(data), name)
    if data.startswith(PARQUET) or suffix == ".parquet":
        return _parquet_texts(data, name, field, most)
    text = _decoded(data, name)
    if suffix in JSON or is_json(text):
        return _json_texts(text, name, field, most)
    return text


def kind_of_name(path: str) -> tuple[str, str | None]:
    """The suffix of a file's name, and the one behind it that says how it is compressed, in small letters."""
    name = Path(path)
    packed = name.suffix.lower()
    return (name.with_suffix("").suffix.lower(), packed) if packed in PACKED else (packed, None)


def is_json(text: str) -> bool:
    """Whether it is JSON to the eye, whatever the name says."""
    if OBJECT.match(text):
        return True
    if not text.lstrip().startswith("["):
        return False
    try:
        return isinstance(parse_json(text, "", DataError), list)
    except DataError:
        return False


@contextmanager
def opened(path: str, name: str) -> Iterator[BinaryIO]:
    """``path`` to be read, or standard input, which is left open."""
    if path != STDIN:
        with open(path, "rb") as file:
            yield file
    elif sys.stdin is None or sys.stdin.closed:
        raise DataError(f"{name}: standard input is closed")
    else:
        yield sys.stdin.buffer


def unreadable(name: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{name}: no such file"
    return f"{name} cannot be read: {error.strerror or error}"


def _read(stream: BinaryIO, name: str, binary: bool) -> bytearray:
    """All of a stream, as far as it is of a kind that is read: what is not, or has no end, is told at once.

    ``binary`` says that its name claims no text.
    """
    data = bytearray()
    while chunk := stream.read(CHUNK):
        if not data:
            _refuse_foreign(chunk, name, binary)
        data += chunk
        if len(data) > LARGEST:
            raise DataError(f"{name} has more than {LARGEST:,} bytes: give a part of it, or its token ids as .npy")
    return data


def _refuse_foreign(head: bytes, name: str, binary: bool) -> None:
    for kind, magic in FOREIGN.items():
        if re.match(magic, head):
            raise DataError(f"{name} is a {kind} file, which is not read; what can be is {READABLE}")
    known = head.startswith((NPY, ZIP, PARQUET)) or any(magic.match(head) for _, magic in PACKED.values())
    if binary or known:
        return
    if UTF_16.match(head):
        raise DataError(
            f"{name} is not UTF-8 text, but looks like UTF-16 or UTF-32: convert it, as in iconv -f UTF-16 -t UTF-8"
        )
    if b"\x00" in head:
        raise DataError(f"{name} is not UTF-8 text, for it holds zero bytes; what can be read is {READABLE}")


def _decoded(data: bytearray, name: str) -> str:
    """Text without a byte-order mark, its lines ended by line feeds."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text: {error}; what can be read is {READABLE}") from None
    return text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _json_texts(text: str, name: str, field: str, most: int | None) -> list[str]:
    """One field of the objects, which stand in lines of their own or in one array."""
    documents: list[str] = []
    for place, value in _entries(text, name, field):
        if len(documents) == most:
            break
        document = value.get(field) if isinstance(value, dict) else None
        if not isinstance(document, str):
            raise DataError(f"{place}: {_expected(field)}, not {_shown(value)}")
        if not document.isascii() and any("\ud800" <= c <= "\udfff" for c in document):
            raise DataError(f'{place}: "{field}" holds half of a surrogate pair, which is no character')
        documents.append(document)
    return documents


def _entries(text: str, name: str, field: str) -> Iterator[tuple[str, Any]]:
    start = text.lstrip()
    if start.startswith("["):
        values = parse_json(text, name, DataError, _expected(field))
        for number, value in enumerate(values, start=1):
            yield f"{name}, entry {number}", value
    elif start.partition("\n")[0].strip() == "{":
        yield name, parse_json(text, name, DataError, _expected(field))
    else:
        # At line feeds alone: JSON lets other characters that Python takes for the end of a line stand in a string.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                place = f"{name}, line {number}"
                yield place, parse_json(line, place, DataError, _expected(field))


def _expected(field: str) -> str:
    return f'expected an object like {{"{field}": "..."}}'


def _shown(value: Any) -> str:
    shown = f"one with {list(value)}" if isinstance(value, dict) else repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _parquet_texts(data: bytearray, name: str, field: str, most: int | None) -> list[str]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{name} is a parquet file; to read it, pip install 'prunecomp[datasets]'") from None
    try:
        texts: list[str] = parquet.ParquetFile(io.BytesIO(data)).read(columns=[field]).column(field).to_pylist()[:most]
    except Exception as error:  # its errors are many, and not its own
        raise DataError(f"{name} cannot be read as parquet with a column {field!r} of text: {error}") from None
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise DataError(f"{name}, row {number}: the column {field!r} holds {_shown(text)} where a text belongs")
    return texts


def _load_array(source: Path | BinaryIO, name: str) -> np.ndarray:
    """The array of an .npy file, or the only one of an .npz."""
    try:
        if isinstance(source, io.BytesIO):
            if zipfile.is_zipfile(source):
                with zipfile.ZipFile(source) as archive:
                    if sum(member.file_size for member in archive.infolist()) > LARGEST:
                        raise DataError(f"{name} unpacks to more than {LARGEST:,} bytes: give its token ids as .npy")
            source.seek(0)
        loaded: Any = np.load(source, allow_pickle=False, mmap_mode="r" if isinstance(source, Path) else None)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            if len(loaded.files) != 1:
                raise DataError(f"{name} holds {_shown(loaded.files)}: give a file with one array of token ids")
            loaded = loaded[loaded.files[0]]
    except DataError:
        raise
    except Exception as error:  # a header is read as Python, and fails in as many ways
        raise DataError(f"{name} is not a readable .npy file of token ids: {error}") from None
    if not isinstance(loaded, np.ndarray):
        raise DataError(f"{name} holds no array of token ids; what can be read is {READABLE}")
    return loaded
