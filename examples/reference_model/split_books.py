"""Split a collection of books into training text and two held-out files.

The collection is one text file in which every book opens with a line ``# Title: NAME``.

    python split_books.py books.txt --out data \\
        --hold-out calibration.txt="The Hound of the Baskervilles" \\
        --hold-out evaluation.txt="The Lair of the White Worm"

writes ``data/train.txt`` with every other book, and one file for each book held out.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

TITLE = re.compile(r"^# Title: (.+)$", re.MULTILINE)


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
    options = parser.parse_args()

    books = split_titles(options.collection.read_text(encoding="utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    for pair in options.hold_out:
        name, _, title = pair.partition("=")
        if title not in books:
            raise SystemExit(f"--hold-out {pair}: the collection has no book titled {title!r}")
        (options.out / name).write_text(books.pop(title), encoding="utf-8")
    (options.out / "train.txt").write_text("\n\n".join(books.values()), encoding="utf-8")
    print(f"{len(books)} books for training in {options.out / 'train.txt'}")


if __name__ == "__main__":
    main()
