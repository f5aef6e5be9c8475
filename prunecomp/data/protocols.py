"""Texts known by name, and data sets of the ``datasets`` library: from its hub, or from a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from prunecomp.data.files import SUFFIXES
from prunecomp.data.records import Content, documents_of, gathered
from prunecomp.errors import DataError

JOIN = "\n\n"
DATASET_SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow", ".csv", ".txt", ".gz")
"""Of files that make a folder a dataset."""


@dataclass(frozen=True)
class Protocol:
    """A text known by name: which dataset, how its documents make one text, and what of its tokens is used."""

    dataset: str
    config: str
    split: str
    field: str | None
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


PLAIN = Protocol("", "", "", None)
"""How a text without a protocol is read."""


def holds_data(folder: str) -> bool:
    """Whether a folder is worth to be looked through for a dataset, which takes long where there are many files."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from None
    return "data" in names or any(name.lower().endswith(DATASET_SUFFIXES) for name in names)


def may_be_dataset(name: str) -> bool:
    """Whether a name without a file may be asked of the hub: a path that is wrong is told at once instead."""
    repository = name.partition(":")[0]
    owner, _, _ = repository.partition("/")
    return (
        re.fullmatch(r"\w[\w.-]*/[\w.-]+", repository) is not None
        and not repository.lower().endswith(SUFFIXES)
        and not os.path.isdir(owner)
    )


def dataset_of(name: str) -> Protocol:
    """``NAME[:CONFIG[:SPLIT[:FIELD]]]``, or a folder."""
    if os.path.isdir(name):
        return Protocol(name, "", "train", None)
    parts = [*name.split(":"), "", "", ""][:4]
    return Protocol(parts[0], parts[1], parts[2] or "train", parts[3] or None)


def _datasets(purpose: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{purpose}, pip install 'prunecomp[datasets]'") from error
    return datasets


def load_dataset(name: str, protocol: Protocol) -> Content:
    """The documents of a data set. Raises :class:`DataError`."""
    folder = os.path.isdir(name)
    what = f"{name} is a folder" if folder else f"{name!r} is no file"
    remedy = "give a file in it" if folder else ""
    datasets = _datasets(f"{what}: {remedy}; to load it as a dataset" if folder else f"{what}; to load it as a dataset")
    files = {} if protocol.file is None else {"data_files": {protocol.split: protocol.file}}
    try:
        if folder and (Path(name) / "state.json").is_file():
            table = datasets.load_from_disk(name)
        else:
            table = datasets.load_dataset(protocol.dataset, protocol.config or None, split=protocol.split, **files)
        if protocol.documents is not None:
            table = table.select(range(min(protocol.documents, len(table))))
        rows = list(table if protocol.field is None else table[protocol.field])
    except Exception as error:  # datasets raises network, parsing and its own errors alike
        local = f"; it can be given as a file, as in {name}=text.txt" if name in PROTOCOLS else ""
        raise DataError(
            f"{what}, and datasets could not load it "
            f"({protocol.dataset}, config {protocol.config or None}, split {protocol.split}"
            f"{f', field {protocol.field}' if protocol.field else ''}): {error}{local}{remedy and f'; {remedy}'}"
        ) from error
    return gathered(
        (each for number, row in enumerate(rows) for each in documents_of(row, f"{name}, row {number}")), name
    )
