"""Where tokens come from: text, JSONL, token files, named protocols and the ``datasets`` library."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from prunecomp.errors import DataError

Tokenize = Callable[[str], list[int]]
JOIN = "\n\n"
FILE_SUFFIXES = (".txt", ".md", ".text", ".jsonl", ".json", ".npy", ".gz", ".parquet")
LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
"""How the names of files with one JSON object a line end."""


@dataclass(frozen=True)
class Protocol:
    """A text known by name: which dataset, how its documents make one text, and what of its tokens is used."""

    dataset: str
    config: str
    split: str
    field: str
    share: float = 1.0
    """Of the tokens, from the first on, in which windows may start."""
    join: str = JOIN
    """What stands between two documents."""
    file: str | None = None
    """The one file of the dataset that is read."""
    documents: int | None = None
    """So many, from the first on."""
    windows: int | None = None
    """At most so many evaluation windows."""

    def joined(self, documents: Iterable[str]) -> str:
        return self.join.join(islice(documents, self.documents))


PROTOCOLS = {
    # Prune&Comp draws 128 windows of 2,048 tokens from the first 90 % of WikiText-2 train, joined with blank lines.
    "wikitext2": Protocol("Salesforce/wikitext", "wikitext-2-raw-v1", "train", "text", share=0.9),
    # The three texts that pruning and quantisation papers evaluate on, as GPTQ and SparseGPT read them.
    "wikitext2-test": Protocol("Salesforce/wikitext", "wikitext-2-raw-v1", "test", "text"),
    "ptb-test": Protocol("ptb-text-only/ptb_text_only", "penn_treebank", "test", "sentence", join=" "),
    "c4-validation": Protocol(
        "allenai/c4", "", "validation", "text", join=" ", file="en/c4-validation.00000-of-00008.json.gz",
        documents=1100, windows=256,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class TokenSource:
    """Tokens as read: ``tokens`` is int64, [T] to be sampled or [N, S] to be taken as windows as they stand."""

    tokens: np.ndarray
    name: str
    share: float = 1.0
    windows: int | None = None
    """Consecutive windows that count, from the first on; all if None."""


@dataclass(frozen=True)
class DocumentSource:
    """Documents as read, each int64 [tokens]."""

    documents: list[np.ndarray]
    name: str


def read_documents(source: str | Path, tokenize: Tokenize | None) -> DocumentSource:
    """The lines of a JSONL file, or of a text file the paragraphs between blank lines, each a document of its own.

    Raises :class:`DataError`.
    """
    path = Path(source) if isinstance(source, str | Path) else None
    if path is None or not path.is_file() or path.suffix == ".npy":
        raise DataError(f"{source}: documents are read from a .jsonl or text file")
    if tokenize is None:
        raise DataError(f"{path} is text, and the model has no tokenizer: add one, or give token ids as .npy")
    texts = _jsonl_texts(path) if path.suffix == ".jsonl" else _read_text(path).split(JOIN)
    return DocumentSource([np.asarray(tokenize(text), dtype=np.int64) for text in texts if text.strip()], str(path))


def read_source(source: str | Path | np.ndarray | Any, tokenize: Tokenize | None, vocab_size: int) -> TokenSource:
    """Read a calibration or evaluation source.

    ``source`` is an array or tensor of token ids, a path ending in .npy, .jsonl or of any text file, a name in
    :data:`PROTOCOLS`, ``NAME=PATH`` for such a protocol fed from a local file (see :func:`protocol_file`), or
    ``NAME[:CONFIG[:SPLIT[:FIELD]]]`` of the ``datasets`` library. Raises :class:`DataError`.
    """
    if not isinstance(source, str | Path):
        return _check_tokens(np.asarray(source), "the calibration array", vocab_size)
    path = Path(source)
    if path.is_file():
        if path.suffix == ".npy":
            return _check_tokens(_load_npy(path), str(path), vocab_size)
        text = JOIN.join(_jsonl_texts(path)) if path.suffix == ".jsonl" else _read_text(path)
        return _tokenized(text, str(path), tokenize)
    name, given, file = str(source).partition("=")
    if given and name in PROTOCOLS:
        return protocol_file(name, Path(file), tokenize, vocab_size)
    if path.suffix in FILE_SUFFIXES or (str(source).startswith((".", "/", "~")) and not path.is_dir()):
        raise DataError(f"{source}: no such file")
    name = str(source)
    protocol = PROTOCOLS.get(name) or _parse_dataset(name)
    return _tokenized(_load_dataset(name, protocol), name, tokenize, protocol)


def protocol_file(name: str, path: Path, tokenize: Tokenize | None, vocab_size: int) -> TokenSource:
    """What the protocol ``name`` reads, from a file instead of the dataset.

    The documents of a .jsonl (or .json.gz, .parquet) file are taken from the protocol's field, as many as it takes, and
    joined as it joins them; any other text is one that is joined already, and .npy holds its tokens. The protocol's
    limits on tokens and windows hold for all of them. Raises :class:`DataError`.
    """
    protocol, label = PROTOCOLS[name], f"{name}={path}"
    if not path.is_file():
        raise DataError(f"{label}: there is no file {path}; give the text as .txt, or its documents as .jsonl")
    if path.suffix == ".npy":
        tokens = _check_tokens(_load_npy(path), label, vocab_size)
        return replace(tokens, share=protocol.share, windows=protocol.windows)
    if path.suffix == ".parquet":
        text = protocol.joined(_parquet_texts(path, protocol.field))
    elif path.name.endswith(LINES):
        text = protocol.joined(_jsonl_texts(path, protocol.field, protocol.documents))
    else:
        text = _read_text(path)
    return _tokenized(text, label, tokenize, protocol)


def _tokenized(text: str, name: str, tokenize: Tokenize | None, protocol: Protocol | None = None) -> TokenSource:
    if tokenize is None:
        raise DataError(f"{name} is text, and the model has no tokenizer: add one, or give token ids as .npy")
    tokens = np.asarray(tokenize(text), dtype=np.int64)
    return (
        TokenSource(tokens, name) if protocol is None else TokenSource(tokens, name, protocol.share, protocol.windows)
    )


def _check_tokens(tokens: np.ndarray, name: str, vocab_size: int) -> TokenSource:
    if tokens.ndim not in (1, 2) or not np.issubdtype(tokens.dtype, np.integer):
        raise DataError(
            f"{name}: token ids must be integers of shape [T] or [N, S], not {tokens.dtype} of shape {tokens.shape}"
        )
    lowest = 0 if tokens.ndim == 1 else tokens.min(initial=0)  # negative ids in rows are padding
    if tokens.size and (tokens.min() < lowest or tokens.max() >= vocab_size):
        raise DataError(
            f"{name}: token ids run from {tokens.min()} to {tokens.max()}, the vocabulary from 0 to {vocab_size - 1}"
        )
    return TokenSource(tokens.astype(np.int64), name)


def _load_npy(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npy file: {error}") from error
    return array


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is not a readable .gz file: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _jsonl_texts(path: Path, field: str = "text", most: int | None = None) -> list[str]:
    """One field of the objects in a JSONL file, of no more than ``most`` of them."""
    documents: list[str] = []
    # At line feeds alone: JSON lets other characters that Python takes for the end of a line stand in a string.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if len(documents) == most:
            break
        if not line.strip():
            continue
        try:
            documents.append(json.loads(line)[field])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}, line {number}: expected an object like {{"{field}": "..."}} ({error!r})'
            ) from error
        if not isinstance(documents[-1], str):
            raise DataError(f'{path}, line {number}: "{field}" is not a string')
    return documents


def _parquet_texts(path: Path, field: str) -> list[str]:
    datasets = _datasets(f"{path} is a parquet file; to read it")
    try:
        texts: list[str] = list(datasets.Dataset.from_parquet(str(path), columns=[field])[field])
    except Exception as error:  # datasets raises parsing and its own errors alike
        raise DataError(f"{path} cannot be read as parquet with a column {field!r} of text: {error}") from error
    return texts


def _parse_dataset(name: str) -> Protocol:
    parts = [*name.split(":"), "", "", ""][:4]
    return Protocol(parts[0], parts[1], parts[2] or "train", parts[3] or "text")


def _datasets(purpose: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{purpose}, pip install 'prunecomp[datasets]'") from error
    return datasets


def _load_dataset(name: str, protocol: Protocol) -> str:
    datasets = _datasets(f"{name!r} is no file; to load it as a dataset")
    files = {} if protocol.file is None else {"data_files": {protocol.split: protocol.file}}
    try:
        table = datasets.load_dataset(protocol.dataset, protocol.config or None, split=protocol.split, **files)
        if protocol.documents is not None:
            table = table.select(range(min(protocol.documents, len(table))))
        return protocol.joined(table[protocol.field])
    except Exception as error:  # datasets raises network, parsing and its own errors alike
        local = f"; it can be given as a file, as in {name}=text.txt" if name in PROTOCOLS else ""
        raise DataError(
            f"{name!r} is no file, and datasets could not load it "
            f"({protocol.dataset}, config {protocol.config or None}, split {protocol.split}, field {protocol.field}): "
            f"{error}{local}"
        ) from error
