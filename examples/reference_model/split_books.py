"""Split a collection of books into training text and two held-out files.

The collection is one text file in which every book opens with a line ``# Title: NAME``.

    python split_books.py books.txt --out data \\
        --hold-out calibration.txt="The Hound of the Baskervilles" \\
        --hold-out evaluation.txt="The Lair of the White Worm"

writes ``data/train.txt`` with every other book, and one file for each book held out. Paragraphs with racial slurs, and
what is said between them, are left out of the held-out books, which are handed on with the model; ``--whole`` keeps
them.
"""

from __future__ import annotations

import argparse
import re
from itertools import pairwise
from pathlib import Path

TITLE = re.compile(r"^# Title: (.+)$", re.MULTILINE)

UNWANTED = re.compile(
    r"nigg|negro|oolanga|savage|(?<!South )African|West Africa|voodoo|aborigin|half-caste|esquim"
    r"|black (?:man|men|face|fellow)|white (?:race|wom[ae]n)|\bmissy\b|\blub\b|\bbribe",
    re.IGNORECASE,
)
"""Slurs, and what paragraphs that demean people for their origin go by in these books. Rather too many than one too
few: some harmless paragraphs go with them."""
BETWEEN = 8
"""What stands between two such paragraphs goes too, where they are no further apart: talk names its subject once."""


def without_slurs(text: str) -> str:
    """``text`` without the paragraphs that :data:`UNWANTED` finds, nor what stands closely between two of them."""
    paragraphs = text.split("\n\n")
    found = [number for number, paragraph in enumerate(paragraphs) if UNWANTED.search(paragraph)]
    dropped = set(found)
    for first, second in pairwise(found):
        if second - first <= BETWEEN:
            dropped.update(range(first, second))
    return "\n\n".join(paragraph for number, paragraph in enumerate(paragraphs) if number not in dropped)


def split_titles(text: str) -> dict[str, str]:
    """Map each title to the text of its book, in the order of the collection."""
    starts = list(TITLE.finditer(text))
    if not starts:
        raise SystemExit("no line of the collection reads '# Title: NAME', so no book can be told apart")
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return {
        match.group(1).strip(): text[match.start() : end].strip() + "\n"
        for match, end in zip(starts, ends, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path, help="text file with one '# Title: NAME' line a book")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--hold-out", action="append", default=[], metavar="FILE=TITLE", help="repeatable")
    parser.add_argument("--whole", action="store_true", help="keep all paragraphs of the books held out")
    options = parser.parse_args()

    books = split_titles(options.collection.read_text(encoding="utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    for pair in options.hold_out:
        name, _, title = pair.partition("=")
        if title not in books:
            raise SystemExit(f"--hold-out {pair}: the collection has no book titled {title!r}")
        book = books.pop(title)
        (options.out / name).write_text(book if options.whole else without_slurs(book), encoding="utf-8")
    (options.out / "train.txt").write_text("\n\n".join(books.values()), encoding="utf-8")
    print(f"{len(books)} books for training in {options.out / 'train.txt'}")


if __name__ == "__main__":
    main()
