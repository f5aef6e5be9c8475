"""Where all pictures are drawn: by matplotlib, which need not be there, and without a display."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from prunecomp.errors import OptionError
from prunecomp.io.escape import one_line, plot_label

try:
    from matplotlib import colormaps, rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True

NEEDS_MATPLOTLIB = "matplotlib is not installed: pip install 'prunecomp[report]'"

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
INK = "#0a0b0c"
"""The colour of all text and axes; a page sets its own in its place, light or dark."""
LONGEST_LABEL = 36
"""Characters: a longer one would take the room of the picture."""


def check_matplotlib() -> None:
    """Raise :class:`OptionError` where it is not installed."""
    if not INSTALLED:
        raise OptionError(NEEDS_MATPLOTLIB)


def new_figure(width: float, height: float) -> Any:
    """Inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    return figure


def label(text: object) -> str:
    """Foreign text in a picture: no formula, on one line, its middle left out where it is long, and nothing in it that
    XML has no place for."""
    line = re.sub("[\ufffe\uffff]", "\ufffd", str(text))
    if len(line) > LONGEST_LABEL:
        half = LONGEST_LABEL // 2
        line = f"{line[: half - 1]}…{line[-half:]}"
    return plot_label(line)


def colours(count: int) -> list[str]:
    """So many, no two alike."""
    if count <= 10:
        return [to_hex(one) for one in colormaps["tab10"].colors[:count]]  # type: ignore[attr-defined]
    return [to_hex(colormaps["turbo"](0.05 + 0.9 * number / (count - 1))) for number in range(count)]


def log_axis(axes: Any) -> None:
    """A vertical axis in logarithms, with numbers that are read."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high < 10 * low  # less than a decade: powers of ten would leave the axis bare
    axes.yaxis.set_major_locator(MaxNLocator(8) if narrow else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def whole_numbers(axis: Any) -> None:
    """No ticks between layers."""
    axis.set_major_locator(MaxNLocator(integer=True))


@contextmanager
def whatever_the_font() -> Iterator[None]:
    """Within, no warning of a glyph that matplotlib's own font lacks: names come in any script."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def svg(name: str, title: str, width: float, height: float, draw: Callable[[Any], None]) -> str:
    """What ``draw`` puts on a figure of so many inches, as an SVG element for the inside of a page.

    Text stays text, escaped. Its ink is the page's, and its ids begin with ``name``, for a page has several.
    """
    inked: dict[Any, Any] = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    )
    drawn = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, **inked}), whatever_the_font():
        figure = new_figure(width, height)
        draw(figure)
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_a_page(drawn.getvalue(), name, title)


def _for_a_page(text: str, name: str, title: str) -> str:
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                value = f"{name}-{value}"
            elif key == f"{{{XLINK}}}href" and value.startswith("#"):
                value = f"#{name}-{value[1:]}"
            elif key in ("style", "clip-path", "fill", "stroke"):
                value = value.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
            element.set(key, value)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", one_line(title))
    return ElementTree.tostring(root, encoding="unicode")
