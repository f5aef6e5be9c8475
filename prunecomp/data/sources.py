"""Where tokens come from: files, arrays, named protocols and the ``datasets`` library, read in one place."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunecomp.data.files import STDIN, SUFFIXES, Content, read_file
from prunecomp.errors import DataError, OptionError, PrunecompError

Tokenize = Callable[[str], list[int]]
JOIN = "\n\n"
DATASET_SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow", ".csv", ".txt", ".gz")
"""Of files that make a folder a dataset."""


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


PLAIN = Protocol("", "", "", "text")
"""How a text without a protocol is read."""


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


UNDESCRIBED = "the tokenizer gives a token the id {}"


class Tokenizer:
    """A tokenizer of transformers, as texts are read with it: loaded for the first one, for token ids need none."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    @cached_property
    def _tokenizer(self) -> Any:
        return self._load()

    def __call__(self, text: str) -> list[int]:
        # One call on the whole text, as the official code makes it: a BOS token, if any, stands once at the start.
        ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return ids

    @property
    def bos(self) -> int | None:
        """The token for the beginning of a text, if there is one."""
        token = getattr(self._tokenizer, "bos_token_id", None)
        return None if token is None else int(token)

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with it without being asked to."""
        return self.bos is not None and self("a")[:1] == [self.bos]

    def describe(self, token: int) -> str:
        """How many tokens there are, and what the one of this id is."""
        try:
            spelt = self._tokenizer.convert_ids_to_tokens(token)
            return f"the tokenizer, of {len(self._tokenizer)} tokens, gives {spelt!r} the id {token}"
        except Exception:  # only to say more in an error; what is no tokenizer of transformers may not know
            return UNDESCRIBED.format(token)


def read(source: Any) -> Reading:
    """What a source holds: calibration, evaluation, documents and protocols all come through here.

    ``source`` is an array or tensor of token ids, a path to what :func:`prunecomp.data.files.read_file` reads (``-`` is
    standard input), a name in :data:`PROTOCOLS`, ``NAME=PATH`` for such a protocol fed from a local file, or
    ``NAME[:CONFIG[:SPLIT[:FIELD]]]`` of the ``datasets`` library. Documents in a protocol's file are taken from its
    field, as many as it takes, and joined as it joins them; a text in it is one that is joined already.

    Raises :class:`DataError`.
    """
    if not isinstance(source, str | Path):
        return Reading(as_array(source), "the array of token ids")
    name = str(source)
    if not name.strip():
        raise DataError("the name of a source is empty: give a path, or the name of a protocol or dataset")
    given, named, file = name.partition("=")
    if named and given in PROTOCOLS and not _exists(name):
        protocol = PROTOCOLS[given]
        if not _exists(file):
            raise DataError(f"{name}: there is no file {file}; give the text as .txt, or its documents as .jsonl")
        return Reading(read_file(file, name, protocol.field, protocol.documents), name, protocol)
    folder = os.path.isdir(name)
    if _exists(name) and not folder:
        return Reading(read_file(name, name), name)
    if not folder and not _may_be_dataset(name):
        raise DataError(f"{name}: no such file")
    if folder and ((Path(name) / "config.json").exists() or not _holds_data(name)):
        raise DataError(f"{name} is a folder, and no dataset: give a file in it")
    protocol = PROTOCOLS.get(name) or _parse_dataset(name)
    return Reading(_load_dataset(name, protocol), name, protocol)


def bos_of(choice: str, reading: Reading, tokenize: Tokenize | None) -> int | None:
    """The token that every window of a source begins with, or None where it stands where the tokenizer puts it.

    ``auto`` is ``each`` where the tokenizer puts a BOS before a text by itself, and ``start`` otherwise and for the
    published protocols. Raises :class:`OptionError` where ``each`` is asked for and cannot be.
    """
    rows = isinstance(reading.content, np.ndarray) and reading.content.ndim == 2
    if choice == "start" or (choice == "auto" and (rows or reading.protocol in PROTOCOLS.values())):
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


def read_source(source: Any, tokenize: Tokenize | None, vocab_size: int, bos: str = "start") -> TokenSource:
    """The tokens of a source (see :func:`read`), all below ``vocab_size``; ``bos`` as :func:`bos_of` has it. Raises
    :class:`DataError`."""
    reading = read(source)
    protocol, content = reading.protocol, reading.content
    if isinstance(content, np.ndarray):
        tokens = check_tokens(content, reading.name, vocab_size)
    else:
        text = content if isinstance(content, str) else protocol.joined(content)
        if not text.strip():
            raise DataError(f"{reading.name} holds no text")
        tokens = token_ids(text, reading.name, tokenize, vocab_size)
    begin = bos_of(bos, reading, tokenize)
    if begin is not None and tokens[:1] == begin:
        tokens = tokens[1:]  # the first window has its own, as all have
    return TokenSource(tokens, reading.name, protocol.share, protocol.windows, begin)


def read_documents(
    source: Any, tokenize: Tokenize | None, vocab_size: int | None = None, bos: str = "start"
) -> DocumentSource:
    """The documents of a source (see :func:`read`), or of a text the paragraphs between blank lines, each a document of
    its own; ``bos`` as :func:`bos_of` has it. Raises :class:`DataError`."""
    reading = read(source)
    texts = reading.content
    if isinstance(texts, np.ndarray):
        raise DataError(
            f"{reading.name}: documents are read from a .jsonl or text file; rows of ids are windows already"
        )
    if isinstance(texts, str):
        texts = texts.split(JOIN)
    texts = [text for text in islice(texts, reading.protocol.documents) if text.strip()]
    begin = bos_of(bos, reading, tokenize)
    documents = [token_ids(text, reading.name, tokenize, vocab_size) for text in texts]
    if begin is not None:
        documents = [ids if ids[:1] == begin else np.concatenate(([begin], ids)) for ids in documents]
    return DocumentSource(documents, reading.name, begin)


def check_read_once(sources: Iterable[Any]) -> None:
    """Raise :class:`DataError` where two of ``sources`` are one pipe: the second would find it empty."""
    seen: dict[tuple[int, int], str] = {}
    for source in sources:
        if not isinstance(source, str | Path):
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


def token_ids(text: str, name: str, tokenize: Tokenize | None, vocab_size: int | None) -> np.ndarray:
    """``text`` as tokens, int64 [T]. Raises :class:`DataError`."""
    if tokenize is None:
        raise DataError(f"{name} is text, and the model has no tokenizer: add one, or give token ids as .npy")
    try:
        tokens = np.asarray(tokenize(text), dtype=np.int64)
    except PrunecompError:
        raise
    except Exception as error:  # tokenizers have errors of many kinds, of other languages too
        raise DataError(f"{name}: the tokenizer does not take it ({type(error).__name__}: {error})") from error
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)] if vocab_size is not None else tokens[:0]
    if len(outside):
        token = int(outside[0])
        given = tokenize.describe(token) if isinstance(tokenize, Tokenizer) else UNDESCRIBED.format(token)
        raise DataError(
            f"{name}: {given}, and the model has rows for {vocab_size} ids, from 0 on: give the tokenizer that the "
            "model was trained with, or a model whose embedding was resized to it"
        )
    return tokens


def as_array(source: Any) -> np.ndarray:
    """Token ids in memory, of whatever kind. Raises :class:`DataError`."""
    kind, wanted = type(source).__name__, "give integers of shape [T] or [N, S], or a path"
    if np.ma.is_masked(source):
        raise DataError("a masked array cannot be read as token ids: give rows with negative ids where they are padded")
    try:
        array = np.asarray(source.detach().cpu() if isinstance(source, torch.Tensor) else source)
    except Exception as error:  # ragged lists, tensors without data, objects that promise an array and have none
        raise DataError(f"this {kind} cannot be read as token ids ({error}): {wanted}") from error
    if array.ndim == 0 or array.dtype.kind in "OSU":
        raise DataError(f"this {kind} holds no token ids: {wanted}")
    return array


def check_tokens(tokens: np.ndarray, name: str, vocab_size: int) -> np.ndarray:
    """``tokens`` as int64. Raises :class:`DataError` unless they are ids [T] or [N, S]."""
    if not tokens.size:
        raise DataError(f"{name}: an array of shape {tokens.shape} holds no token ids, nothing to run")
    if tokens.ndim not in (1, 2) or tokens.dtype.kind not in "iu":
        raise DataError(
            f"{name}: token ids must be integers of shape [T] or [N, S], not {tokens.dtype} of shape {tokens.shape}"
        )
    lowest = 0 if tokens.ndim == 1 else tokens.min(initial=0)  # negative ids in rows are padding
    if tokens.min() < lowest or tokens.max() >= vocab_size:
        raise DataError(
            f"{name}: token ids run from {tokens.min()} to {tokens.max()}, the vocabulary from 0 to {vocab_size - 1}"
        )
    return tokens.astype(np.int64)


def _exists(path: str) -> bool:
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


def _holds_data(folder: str) -> bool:
    """Whether a folder is worth to be looked through for a dataset, which takes long where there are many files."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from None
    return "data" in names or any(name.lower().endswith(DATASET_SUFFIXES) for name in names)


def _may_be_dataset(name: str) -> bool:
    """Whether a name without a file may be asked of the hub: a path that is wrong is told at once instead."""
    repository = name.partition(":")[0]
    owner, slash, _ = repository.partition("/")
    return (
        re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", repository) is not None
        and not repository.lower().endswith(SUFFIXES)
        and not (os.path.isdir(owner) if slash else re.search(r"\.[A-Za-z]\w*$", repository))
    )


def _parse_dataset(name: str) -> Protocol:
    if os.path.isdir(name):
        return Protocol(name, "", "train", "text")
    parts = [*name.split(":"), "", "", ""][:4]
    return Protocol(parts[0], parts[1], parts[2] or "train", parts[3] or "text")


def _datasets(purpose: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{purpose}, pip install 'prunecomp[datasets]'") from error
    return datasets


def _load_dataset(name: str, protocol: Protocol) -> list[str]:
    folder = os.path.isdir(name)
    what = f"{name} is a folder" if folder else f"{name!r} is no file"
    remedy = "give a file in it" if folder else ""
    datasets = _datasets(f"{what}: {remedy}; to load it as a dataset" if folder else f"{what}; to load it as a dataset")
    files = {} if protocol.file is None else {"data_files": {protocol.split: protocol.file}}
    try:
        table = datasets.load_dataset(protocol.dataset, protocol.config or None, split=protocol.split, **files)
        if protocol.documents is not None:
            table = table.select(range(min(protocol.documents, len(table))))
        texts = list(table[protocol.field])
    except Exception as error:  # datasets raises network, parsing and its own errors alike
        local = f"; it can be given as a file, as in {name}=text.txt" if name in PROTOCOLS else ""
        raise DataError(
            f"{what}, and datasets could not load it "
            f"({protocol.dataset}, config {protocol.config or None}, split {protocol.split}, field {protocol.field}): "
            f"{error}{local}{remedy and f'; {remedy}'}"
        ) from error
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{name}: the field {protocol.field} holds no text in every row")
    return texts
