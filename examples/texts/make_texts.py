"""Make the bundled texts: a mixture to calibrate on, and kinds of text that are not in it to judge by.

    apt-get download sqlite3-doc && dpkg-deb -x sqlite3-doc_*.deb sqlite
    pip download --no-deps tornado==6.6.1
    python make_texts.py --books books.txt --sqlite sqlite/usr/share/doc/sqlite3 --tornado tornado-*.whl

``books.txt`` is a collection of books in which each opens with a line ``# Title: NAME``, as for
``../reference_model/split_books.py``.
"""

from __future__ import annotations

import argparse
import html
import re
import sys
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "reference_model"))
from split_books import split_titles, without_slurs

CHARACTERS = 100_000
"""Of each kind of text."""

MANUALS = ("atomiccommit", "howtocorrupt", "queryplanner", "wal", "optoverview")
MODULES = ("queues", "locks", "routing", "tcpclient", "options", "template", "log")
OTHER_MODULES = ("iostream", "ioloop")
BLOCKS = {"p", "li", "dd", "dt", "h1", "h2", "h3", "h4", "pre", "table", "tr", "div", "br", "blockquote"}


class Plain(HTMLParser):
    """The text of a page, a paragraph a block."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0
        self.verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in ("script", "style", "svg", "head")
        self.verbatim += tag == "pre"
        if tag in BLOCKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style", "svg", "head")
        self.verbatim -= tag == "pre"
        if tag in BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data if self.verbatim else re.sub(r"\s+", " ", data))


def manual(folder: Path, names: tuple[str, ...]) -> Iterator[str]:
    """SQLite's pages as text, from the first section on: what comes before is the site's menu."""
    for name in names:
        page = Plain()
        page.feed((folder / f"{name}.html").read_text(encoding="utf-8"))
        lines = [line.strip(" ") for line in html.unescape("".join(page.parts)).splitlines()]
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
        yield text[text.rindex("1. ", 0, len(text) // 2) if "\n1. " in text[: len(text) // 2] else 0 :].strip()


def modules(wheel: Path, names: tuple[str, ...]) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        for name in names:
            yield archive.read(f"tornado/{name}.py").decode("utf-8").strip()


def cut(text: str) -> str:
    """The first so many characters, to the end of a paragraph."""
    return text if len(text) <= CHARACTERS else text[: text.rindex("\n\n", 0, CHARACTERS)] + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--sqlite", type=Path, required=True)
    parser.add_argument("--tornado", type=Path, required=True)
    options = parser.parse_args()
    books = split_titles(options.books.read_text(encoding="utf-8"))
    here = Path(__file__).parent
    mixture = {
        "fiction": without_slurs(books["The Hound of the Baskervilles"]),
        "report": without_slurs(books["Journal of the Plague Year"]),
        "documentation": "\n\n\n".join(manual(options.sqlite, MANUALS)),
        "code": "\n\n\n".join(modules(options.tornado, MODULES)),
    }
    bundled = here.parent.parent / "prunecomp" / "data" / "texts"
    for kind, text in mixture.items():
        (bundled / f"{kind}.txt").write_text(cut(text).strip() + "\n", encoding="utf-8")
    (here / "verse.txt").write_text(cut(without_slurs(books["Poems"])), encoding="utf-8")
    (here / "code.txt").write_text(cut("\n\n\n".join(modules(options.tornado, OTHER_MODULES))), encoding="utf-8")


if __name__ == "__main__":
    main()
