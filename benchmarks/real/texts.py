"""Kinds of text to judge by: windows of one length, spread over several documents of each kind.

Nothing of these texts is in the repository. WikiText-2 test and a collection of books (each opens with a line
``# Title: NAME``) are given as files; documentation is vim's manual and code is Python's standard library, as they are
installed here.
"""

from __future__ import annotations

import argparse
import lzma
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from prunecomp.data.tokens import Tokenizer

NOVELS = ("Middlemarch", "The Lair of the White Worm", "Crime and Punishment", "The First Men in the Moon")
MODULES = ("argparse", "tarfile", "difflib", "statistics")
MANUAL = Path("/usr/share/vim")
CHARACTERS = 200_000
PAGES = ("usr_25", "options", "pattern", "quickfix")


def read_text(file: Path) -> str:
    """A text, packed with xz or not."""
    content = file.read_bytes()
    return (lzma.decompress(content) if file.suffix == ".xz" else content).decode("utf-8")


def novels_of(books: str) -> dict[str, str]:
    """The text of each book by its title."""
    titles = list(re.finditer(r"^# Title: (.+)$", books, re.MULTILINE))
    ends = [title.start() for title in titles[1:]] + [len(books)]
    return {title[1].strip(): books[title.end() : end] for title, end in zip(titles, ends, strict=True)}


def documents_of(wikitext: Path, books: Path) -> dict[str, list[str]]:
    """The documents of each kind, by its name in the tables, each cut after so many characters."""
    novels = novels_of(read_text(books))
    (manual,) = MANUAL.glob("vim*/doc")
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = {
        "WikiText-2 test": [read_text(wikitext)],
        "fiction": [novels[title] for title in NOVELS],
        "documentation": [(manual / f"{page}.txt").read_text(encoding="utf-8") for page in PAGES],
        "code": [(library / f"{module}.py").read_text(encoding="utf-8") for module in MODULES],
    }
    return {kind: [document[:CHARACTERS] for document in documents] for kind, documents in texts.items()}


def spread(documents: list[str], tokenizer: Tokenizer, windows: int, seqlen: int) -> np.ndarray:
    """``windows`` windows [N, S] of token ids, as many from each document, evenly spaced in it.

    Each begins with BOS where the tokenizer puts one before a text by itself (``--bos auto``).
    """
    each, odd = divmod(windows, len(documents))
    if odd:
        raise ValueError(f"{windows} windows cannot be shared among {len(documents)} documents: give a multiple")
    bos = [tokenizer.bos] if tokenizer.adds_bos else []
    room = seqlen - len(bos)
    rows = []
    for document in documents:
        ids = tokenizer(document)[len(bos) :]
        for start in np.linspace(0, len(ids) - room, each + 2)[1:-1].astype(int):
            rows.append([*bos, *ids[start : start + room]])
    return np.array(rows, dtype=np.int64)


def windows_of(
    kinds: dict[str, list[str]], load_tokenizer: Callable[[], object], windows: int, seqlen: int
) -> dict[str, np.ndarray]:
    """Token ids [N, S] of each kind."""
    tokenizer = Tokenizer(load_tokenizer)
    return {kind: spread(documents, tokenizer, windows, seqlen) for kind, documents in kinds.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and what :func:`judged_on` is made of."""
    parser.add_argument("model", type=Path)
    parser.add_argument("--wikitext", type=Path, required=True, help="WikiText-2 test")
    parser.add_argument("--books", type=Path, required=True, help="a collection of books, see texts.py")
    parser.add_argument("--windows", type=int, default=8, help="of each kind of text")


def judged_on(options: argparse.Namespace, seqlen: int) -> dict[str, np.ndarray]:
    """Token ids [N, seqlen] of each kind, as the model's tokenizer has them."""
    kinds = documents_of(options.wikitext, options.books)
    return windows_of(kinds, lambda: AutoTokenizer.from_pretrained(options.model), options.windows, seqlen)
