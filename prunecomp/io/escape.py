"""Foreign text on its way out: names and licences come from anywhere, and mean nothing in the medium they go to.

A medium is a terminal, Markdown, HTML, CSV or a plot. YAML and JSON escape by themselves. Ordinary text stays as it is.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

# Controls, formats (bidirectional overrides among them), line and paragraph separators, surrogates.
HIDDEN = ("Cc", "Cf", "Zl", "Zp", "Cs")
FORMULA = ("=", "+", "-", "@")


def one_line(text: object) -> str:
    """For a terminal, and the first step for all others: whatever moves the cursor, colours, hides or turns text around
    is written as its escape, as in ``\\x1b`` and ``\\n``."""
    return "".join(_named(c) if unicodedata.category(c) in HIDDEN else c for c in str(text))


def _named(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def markdown(text: object) -> str:
    """For running text and table cells of Markdown: nothing in it is markup, HTML or a link."""
    escaped = re.sub(r"([\\`*|~$]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", one_line(text))
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"://|(?i:(?<=www)\.)|@", lambda found: "".join(f"&#{ord(c)};" for c in found[0]), escaped)


def code(text: object) -> str:
    """For Markdown, as a code span."""
    line = one_line(text)
    fence = "`" * (_longest_run(line) + 1)
    pad = " " if not line.strip() or "`" in (line[0], line[-1]) else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def code_block(text: object) -> str:
    """For Markdown, as a block of one line."""
    line = one_line(text)
    fence = "`" * max(3, _longest_run(line) + 1)
    return f"{fence}\n{line}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Names come before the numbers, and may be anything."""
    return [
        f"| {' | '.join(headings)} |",
        "| --- |" + " ---: |" * (len(headings) - 1),
        *(f"| {' | '.join([markdown(row[0]), *row[1:]])} |" for row in rows),
    ]


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table for a notebook: nothing in it is markup."""
    head = "".join(f"<th>{_html(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_html(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{_html(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html(text: object) -> str:
    return html.escape(one_line(text))


def csv_cell(text: object) -> str:
    """For a cell of text in CSV: no spreadsheet takes it for a formula."""
    line = one_line(text)
    return f"'{line}" if line.lstrip().startswith(FORMULA) else line


def plot_label(text: object) -> str:
    """For matplotlib: dollar signs enclose no formula, and a leading underscore hides no entry of a legend."""
    line = one_line(text).replace("$", r"\$")
    return f"\u200a{line}" if line.startswith("_") else line
