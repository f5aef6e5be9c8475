"""Where tokens come from: text, JSONL, token files, named protocols and the ``datasets`` library."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunecomp.errors import DataError

Tokenize = Callable[[str], list[int]]
JOIN = "\n\n"
FILE_SUFFIXES = (".txt", ".md", ".text", ".jsonl", ".json", ".npy")


@dataclass(frozen=True)
class Protocol:
    """A calibration set known by name: which dataset, and which share of its tokens windows may start in."""

    dataset: str
    config: str
    split: str
    field: str
    share: float = 1.0


PROTOCOLS = {
    # Prune&Comp draws 128 windows of 2,048 tokens from the first 90 % of WikiText-2 train, joined with blank lines.
    "wikitext2": Protocol("Salesforce/wikitext", "wikitext-2-raw-v1", "train", "text", share=0.9),
    "wikitext2-test": Protocol("Salesforce/wikitext", "wikitext-2-raw-v1", "test", "text"),
}


@dataclass(frozen=True)
class TokenSource:
    """Tokens as read: ``tokens`` is int64, [T] to be sampled or [N, S] to be taken as windows as they stand."""

    tokens: np.ndarray
    name: str
    share: float = 1.0


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
    :data:`PROTOCOLS`, or ``NAME[:CONFIG[:SPLIT[:FIELD]]]`` of the ``datasets`` library. Raises :class:`DataError`.
    """
    if not isinstance(source, str | Path):
        return _check_tokens(np.asarray(source), "the calibration array", vocab_size)
    path = Path(source)
    if path.is_file():
        if path.suffix == ".npy":
            return _check_tokens(_load_npy(path), str(path), vocab_size)
        text = JOIN.join(_jsonl_texts(path)) if path.suffix == ".jsonl" else _read_text(path)
        return _tokenized(text, str(path), tokenize)
    if path.suffix in FILE_SUFFIXES or (str(source).startswith((".", "/", "~")) and not path.is_dir()):
        raise DataError(f"{source}: no such file")
    name = str(source)
    protocol = PROTOCOLS.get(name) or _parse_dataset(name)
    return _tokenized(_load_dataset(protocol), name, tokenize, protocol.share)


def _tokenized(text: str, name: str, tokenize: Tokenize | None, share: float = 1.0) -> TokenSource:
    if tokenize is None:
        raise DataError(f"{name} is text, and the model has no tokenizer: add one, or give token ids as .npy")
    return TokenSource(np.asarray(tokenize(text), dtype=np.int64), name, share)


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
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error


def _jsonl_texts(path: Path) -> list[str]:
    documents = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            documents.append(json.loads(line)["text"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f'{path}, line {number}: expected an object like {{"text": "..."}} ({error!r})') from error
        if not isinstance(documents[-1], str):
            raise DataError(f'{path}, line {number}: "text" is not a string')
    return documents


def _parse_dataset(name: str) -> Protocol:
    parts = [*name.split(":"), "", "", ""][:4]
    return Protocol(parts[0], parts[1], parts[2] or "train", parts[3] or "text")


def _load_dataset(protocol: Protocol) -> str:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{protocol.dataset!r} is no file; to load it as a dataset, pip install 'prunecomp[datasets]'"
        ) from error
    try:
        table = datasets.load_dataset(protocol.dataset, protocol.config or None, split=protocol.split)
        return JOIN.join(table[protocol.field])
    except Exception as error:  # datasets raises network, parsing and its own errors alike
        raise DataError(
            f"{protocol.dataset!r} is no file, and datasets could not load it "
            f"(config {protocol.config or None}, split {protocol.split}, field {protocol.field}): {error}"
        ) from error
