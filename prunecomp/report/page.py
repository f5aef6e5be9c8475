"""A report as one HTML file that fetches nothing: sections of tables, pictures and texts, laid out by a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

from prunecomp.errors import OptionError
from prunecomp.io.escape import one_line
from prunecomp.report.drawing import INSTALLED as HAS_MATPLOTLIB

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
    from markupsafe import Markup
except ImportError:
    HAS_JINJA = False
else:
    HAS_JINJA = True

EXTRA = "pip install 'prunecomp[report]'"
TEMPLATE = "page.html"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, object]]


@dataclass(frozen=True)
class Tiles:
    """Numbers to see first: what it is, the number, and what stands small below."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Grid:
    """A table whose rows begin with a name; ``best`` are the cells, by row and column, that stand out."""

    kind: ClassVar[str] = "grid"
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    best: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Picture:
    """An SVG element, of :func:`prunecomp.report.drawing.svg`."""

    kind: ClassVar[str] = "picture"
    svg: str
    caption: str = ""

    @property
    def markup(self) -> Any:
        return Markup(self.svg)


@dataclass(frozen=True)
class Strip:
    """A model's layers in a row. A cell is what it is (kept, gone, fitted, seam), what stands in it, and what it says
    of itself."""

    kind: ClassVar[str] = "strip"
    name: str
    cells: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Answers:
    """To each prompt what each model wrote: its name, the text, and a remark."""

    kind: ClassVar[str] = "answers"
    each: Sequence[tuple[str, Sequence[tuple[str, str, str]]]]


@dataclass(frozen=True)
class Command:
    """To be copied."""

    kind: ClassVar[str] = "command"
    text: str


Block = Facts | Tiles | Grid | Picture | Strip | Answers | Command


@dataclass(frozen=True)
class Section:
    """A heading, a line of prose, and what is shown; without blocks there is no section."""

    title: str
    blocks: Sequence[Block] = field(default_factory=list)
    lead: str = ""
    wide: bool = False
    """Over the whole width of a large screen."""


def check_report() -> None:
    """Raise :class:`OptionError` where a report cannot be made, with what to install."""
    missing = [name for name, there in (("matplotlib", HAS_MATPLOTLIB), ("jinja2", HAS_JINJA)) if not there]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise OptionError(f"{' and '.join(missing)} {verb} not installed: {EXTRA}")


def page(title: str, sections: Sequence[Section], made_by: str) -> str:
    """The whole file. Every name that is put in is text on one line, and escaped. Raises :class:`ValueError` where a
    part is not what it says it is."""
    shown = [section for section in sections if section.blocks]
    try:
        return str(_environment().get_template(TEMPLATE).render(title=title, sections=shown, made_by=made_by))
    except TemplateError as error:
        raise ValueError(f"what the page should show is not there: {error}") from error


@cache
def _environment() -> Any:
    return Environment(
        loader=PackageLoader("prunecomp.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda value: value if isinstance(value, Markup) else one_line(value),
    )  # fmt: skip
