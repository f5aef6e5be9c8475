"""Where everything for people goes out: a string is text and never markup, and what is foreign in it is escaped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.table import Table as RichTable
from rich.text import Text

from prunecomp.io.escape import one_line


class Console(RichConsole):
    """Prints strings as they are. Style comes with :class:`rich.text.Text`, whose makers escape what is foreign."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(one_line(text), **{**options, "markup": False, "emoji": False})


class Table(RichTable):
    """The same in cells, headings and titles, whatever console prints it."""

    def __init__(self, *, title: str, show_header: bool = True) -> None:
        super().__init__(title=Text(one_line(title), "table.title"), show_header=show_header)

    @classmethod
    def of(
        cls,
        title: str,
        headings: Sequence[str],
        rows: Iterable[Sequence[Any]],
        *,
        left: Collection[str] = (),
        fold: Collection[str] = (),
    ) -> Table:
        """A whole one. Columns are set to the right, but those called as in ``left``; those in ``fold`` break what is
        too wide for them, where others cut it short."""
        table = cls(title=title)
        for heading in headings:
            justify: Any = "left" if heading in left else "right"
            table.add_column(heading, justify=justify, overflow="fold" if heading in fold else "ellipsis")
        for row in rows:
            table.add_row(*row)
        return table

    def add_column(self, header: Any = "", *arguments: Any, **options: Any) -> None:
        super().add_column(_plain(header), *arguments, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(_plain(cell) for cell in cells), **options)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, Text(one_line(value), "table.caption") if name == "caption" and value else value)


def _plain(cell: Any) -> Any:
    return Text(one_line(cell)) if isinstance(cell, str) else cell
