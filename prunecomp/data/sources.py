"""Where tokens come from: whatever is given is read in one place, whatever it is read for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from prunecomp.data.files import PACKED, STDIN, SUFFIXES, read_file
from prunecomp.data.in_memory import MOST_ROWS, MOST_TOKENS, content_of
from prunecomp.data.protocols import (
    JOIN,
    PLAIN,
    PROTOCOLS,
    Protocol,
    dataset_of,
    holds_data,
    load_dataset,
    may_be_dataset,
)
from prunecomp.data.records import Chat, Content
from prunecomp.data.tokens import Tokenize, Tokenizer, check_tokens, token_ids
from prunecomp.errors import DataError, OptionError
from prunecomp.io.values import LONGEST_NAME

WORDS = 4
"""So many in a row, or a line feed, make a string a text, and no name."""
TEXTS = (".txt", ".text", ".md")
"""Of files that make a folder one of texts."""


@dataclass(frozen=True)
class TokenSource:
    """Tokens as read: ``tokens`` is int64, [T] to be sampled or [N, S] to be taken as windows as they stand."""

    tokens: np.ndarray
    name: str
    share: float = 1.0
    windows: int | None = None
    """Consecutive windows that count, from the first on; all if None."""
    bos: int | None = None
    """What every window begins with, inside its length; None where windows are cut from the tokens as they stand."""

    def longest(self, seqlen: int) -> int:
        """Tokens of the longest window where ``seqlen`` is asked for."""
        return seqlen if self.tokens.ndim == 1 else int((self.tokens >= 0).sum(axis=1).max())


@dataclass(frozen=True)
class DocumentSource:
    """Documents as read, each int64 [tokens]."""

    documents: list[np.ndarray]
    name: str
    bos: int | None = None
    """What every document begins with; None where they are as the tokenizer gives them."""


@dataclass(frozen=True)
class Reading:
    """What a source holds, before it is made into tokens: the same whatever it is read for."""

    content: Content
    name: str
    protocol: Protocol = PLAIN

    @property
    def conversations(self) -> bool:
        """Whether its samples are conversations, each of which is one by itself."""
        return isinstance(self.content, list) and bool(self.content) and isinstance(self.content[0], Chat)


def read(source: Any, rows: int = MOST_ROWS, tokens: int = MOST_TOKENS) -> Reading:
    """What a source holds: calibration, evaluation, documents and protocols all come through here.

    ``source`` is

    - data in memory, see :func:`prunecomp.data.in_memory.content_of`, which ``rows`` and ``tokens`` are for;
    - a path, or ``PATH:FIELD``, to what :func:`prunecomp.data.files.read_file` reads (``-`` is standard input), or to a
      folder of texts;
    - a name in :data:`PROTOCOLS`, or ``NAME=PATH`` for such a protocol fed from a local file;
    - ``OWNER/NAME[:CONFIG[:SPLIT[:FIELD]]]`` of the ``datasets`` library, or a folder that it knows;
    - a text itself: a string in which several words follow each other, and that names no file.

    Documents in a protocol's file are taken from its field, as many as it takes, and joined as it joins them; a text in
    it is one that is joined already. Raises :class:`DataError`.
    """
    if not isinstance(source, str | Path):
        array = isinstance(source, np.ndarray) or type(source).__name__ == "Tensor"
        name = "the array of token ids" if array else f"the {type(source).__name__}"
        return Reading(content_of(source, name, rows, tokens), name)
    name = str(source)
    if not name.strip():
        raise DataError("the name of a source is empty: give a path, or the name of a protocol or dataset")
    given, named, file = name.partition("=")
    if named and given in PROTOCOLS and not exists(name):
        protocol = PROTOCOLS[given]
        path, field = split_field(file)
        if not exists(path):
            raise DataError(f"{name}: there is no file {file}; give the text as .txt, or its documents as .jsonl")
        return Reading(read_file(path, name, field or protocol.field, protocol.documents), name, protocol)
    if isinstance(source, str) and is_text(name):
        words = name.split()
        return Reading(name, f"the text {' '.join(words[:WORDS])!r}")
    path, field = split_field(name)
    if os.path.isdir(path):
        return _read_folder(path, name, field)
    if exists(path):
        content = read_file(path, name, field)
        if field is not None and not isinstance(content, list):
            raise DataError(f"{name}: {path} is no file of records, and has no fields: leave out :{field}")
        return Reading(content, name)
    if name not in PROTOCOLS and not may_be_dataset(name):
        raise DataError(
            f"{name}: no such file; what has no file is a protocol ({', '.join(PROTOCOLS)}), a "
            "data set of the hub, as in allenai/c4:en:train, or a text of several words"
        )
    protocol = PROTOCOLS.get(name) or dataset_of(name)
    return Reading(load_dataset(name, protocol), name, protocol)


def _read_folder(path: str, name: str, field: str | None) -> Reading:
    if (Path(path) / "config.json").exists() or not holds_data(path):
        raise DataError(f"{name} is a folder, and no dataset: give a file in it")
    files = [] if field is not None else list(_texts_in(Path(path)))
    if files:
        contents = [read_file(str(file), str(file)) for file in files]
        others = [str(file) for file, held in zip(files, contents, strict=True) if not isinstance(held, str)]
        if others:
            raise DataError(f"{name} is a folder of texts, and {others[0]} is none: give that file by itself")
        return Reading(contents, name)  # type: ignore[arg-type]
    protocol = Protocol(path, "", "train", field)
    return Reading(load_dataset(path, protocol), name, protocol)


def _texts_in(folder: Path) -> Iterator[Path]:
    """The texts in a folder and those in it, in the order of their names, where it has no data of another kind."""
    kinds: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        plain = file.with_suffix("") if file.suffix.lower() in PACKED else file
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_file() and not hidden:
            kinds.setdefault(plain.suffix.lower(), []).append(file)
    if not any(kind in SUFFIXES and kind not in TEXTS for kind in kinds):
        yield from next((kinds[kind] for kind in TEXTS if kind in kinds), [])


def is_text(name: str) -> bool:
    """Whether a string is a text itself, and no name of anything."""
    several = len(name.split(maxsplit=WORDS)) >= WORDS and not name.lower().endswith(SUFFIXES)
    long = len(name) > LONGEST_NAME and os.sep not in name
    return ("\n" in name.strip() or several or long) and not os.path.lexists(name)


def split_field(name: str) -> tuple[str, str | None]:
    """``FILE:FIELD`` as the two, where there is such a file; else the name as it is."""
    file, colon, field = name.rpartition(":")
    return (file, field) if colon and field and not exists(name) and exists(file) else (name, None)


def exists(path: str) -> bool:
    """Whether something is there, be it a pipe, a folder, or what may not be read."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return path == STDIN
    except OSError:
        return True  # what is wrong with it is told when it is read
    except ValueError:
        return False  # no path can hold a zero byte
    return True


def bos_of(choice: str, reading: Reading, tokenize: Tokenize | None) -> int | None:
    """The token that every window of a source begins with, or None where it stands where the tokenizer puts it.

    ``auto`` is ``each`` where the tokenizer puts a BOS before a text by itself, and ``start`` otherwise, for the
    published protocols, and for conversations, which begin as the chat template has them. Raises :class:`OptionError`
    where ``each`` is asked for and cannot be.
    """
    rows = isinstance(reading.content, np.ndarray) and reading.content.ndim == 2
    as_it_is = rows or reading.conversations or reading.protocol in PROTOCOLS.values()
    if choice == "start" or (choice == "auto" and as_it_is):
        return None
    if rows:
        raise OptionError(f"--bos each: {reading.name} is windows already and is taken as it stands; leave it out")
    tokenizer = tokenize if isinstance(tokenize, Tokenizer) else None
    if choice == "auto":
        return _bos_by_itself(tokenizer, isinstance(reading.content, np.ndarray))
    if tokenizer is None or tokenizer.bos is None:
        raise OptionError("--bos each: the model has no tokenizer with a BOS token; use --bos start")
    return tokenizer.bos


def _bos_by_itself(tokenizer: Tokenizer | None, ids: bool) -> int | None:
    try:
        return tokenizer.bos if tokenizer is not None and tokenizer.adds_bos else None
    except Exception:  # told when a text is read with it; for ids none is needed
        if ids:
            return None
        raise


def token_source(reading: Reading, tokenize: Tokenize | None, vocab_size: int, bos: str = "start") -> TokenSource:
    """The tokens of what was read, all below ``vocab_size``; ``bos`` as :func:`bos_of` has it. Raises
    :class:`DataError`."""
    protocol, content = reading.protocol, reading.content
    if isinstance(content, np.ndarray):
        tokens = check_tokens(content, reading.name, vocab_size)
    elif reading.conversations:
        raise DataError(f"{reading.name} holds conversations, each of which is a sample by itself, and no text")
    else:
        text = content if isinstance(content, str) else protocol.joined(content)  # type: ignore[arg-type]
        if not text.strip():
            raise DataError(f"{reading.name} holds no text")
        tokens = token_ids(text, reading.name, tokenize, vocab_size)
    begin = bos_of(bos, reading, tokenize)
    if begin is not None and tokens[:1] == begin:
        tokens = tokens[1:]  # the first window has its own, as all have
    return TokenSource(tokens, reading.name, protocol.share, protocol.windows, begin)


def document_source(
    reading: Reading, tokenize: Tokenize | None, vocab_size: int | None = None, bos: str = "start"
) -> DocumentSource:
    """The documents of what was read, or of a text the paragraphs between blank lines, each a document of its own;
    ``bos`` as :func:`bos_of` has it. Raises :class:`DataError`."""
    texts = reading.content
    if isinstance(texts, np.ndarray):
        raise DataError(
            f"{reading.name}: documents are read from a .jsonl or text file; rows of ids are windows already"
        )
    held: Iterable[str | Chat] = texts.split(JOIN) if isinstance(texts, str) else texts
    some = [text for text in islice(held, reading.protocol.documents) if isinstance(text, Chat) or text.strip()]
    begin = bos_of(bos, reading, tokenize)
    documents = [token_ids(text, reading.name, tokenize, vocab_size) for text in some]
    if begin is not None:
        documents = [ids if ids[:1] == begin else np.concatenate(([begin], ids)) for ids in documents]
    return DocumentSource(documents, reading.name, begin)


def read_source(source: Any, tokenize: Tokenize | None, vocab_size: int, bos: str = "start") -> TokenSource:
    """:func:`token_source` of :func:`read`."""
    return token_source(read(source), tokenize, vocab_size, bos)


def read_documents(
    source: Any, tokenize: Tokenize | None, vocab_size: int | None = None, bos: str = "start"
) -> DocumentSource:
    """:func:`document_source` of :func:`read`."""
    return document_source(read(source), tokenize, vocab_size, bos)


def check_read_once(sources: Iterable[Any]) -> None:
    """Raise :class:`DataError` where two of ``sources`` are one pipe or one generator: the second would find it
    empty."""
    seen: dict[tuple[int, int], str] = {}
    for source in sources:
        if not isinstance(source, str | Path):
            if isinstance(source, Iterator) and (0, id(source)) in seen:
                raise DataError(f"the {type(source).__name__} is given twice, and can be read once: give a list")
            seen[0, id(source)] = ""
            continue
        name, named, file = str(source).partition("=")
        try:
            path = file if named and name in PROTOCOLS else str(source)
            status = os.stat("/dev/stdin" if path == STDIN else path)
        except (OSError, ValueError):
            continue  # what is wrong with it is told when it is read
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            continue
        identity = status.st_dev, status.st_ino
        if identity in seen:
            raise DataError(
                f"{source}: it is a pipe that {seen[identity]} reads too, and can be read once: give a file"
            )
        seen[identity] = str(source)
