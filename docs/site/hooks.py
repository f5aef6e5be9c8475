"""What the site holds beside the pages in ``docs``: pages that stand elsewhere in the repository, files that pages link
to, and tables made from the code.

A link leads to a file of the repository, from wherever its page stands, so that it works in the repository as well.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, relpath
from typing import Any

from mkdocs.structure.files import File, Files

from prunecomp.options import PANELS, CompareOptions, Option, Options, PruneOptions

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/real/README.md": "evidence.md",
    "benchmarks/results/growth_cpu.md": "results/growth.md",
    "benchmarks/results/methods/comparison.md": "results/methods.md",
    "benchmarks/results/real/smollm2-wikitext/tables.md": "results/smollm2-wikitext.md",
    "benchmarks/results/real/smollm2-mixture/tables.md": "results/smollm2-mixture.md",
    "benchmarks/results/real/smollm2-repairs/tables.md": "results/smollm2-repairs.md",
    "benchmarks/results/real/smollm2-peers/tables.md": "results/smollm2-peers.md",
    "benchmarks/results/real/gemma-repairs/tables.md": "results/gemma-repairs.md",
    "benchmarks/results/real/smollm2-profile/nothing-paper.md": "results/smollm2-profile.md",
    "benchmarks/results/real/smollm2-profile/joint.md": "results/smollm2-profile-joint.md",
    "examples/reference_model/README.md": "reference/reference-model.md",
}
"""Pages by where they stand, and where the site has them."""
LINK = re.compile(r"(!?\[[^\]]*\])\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
TABLE = re.compile(r"<!-- table of options: (\w+) -->")
COMMANDS = {"evaluate": "eval"}


def on_files(files: Files, config: Any) -> None:
    for name, uri in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    here = Path(page.file.abs_src_path).parent

    def led(link: re.Match[str]) -> str:
        label, target, anchor = link.groups()
        path = (here / target).resolve()
        if path.is_dir() or not path.is_relative_to(ROOT):
            return label.strip("[]") if path.is_dir() else link[0]
        name = path.relative_to(ROOT).as_posix()
        uri = ELSEWHERE.get(name, name.removeprefix("docs/"))
        if uri == name and path.is_file() and path.suffix != ".md" and files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
        return f"{label}({relpath(uri, dirname(page.file.src_uri))}{anchor or ''})"

    return TABLE.sub(lambda named: tables(named[1]), LINK.sub(led, markdown))


def tables(which: str) -> str:
    """Those of the options of ``compare``, or of everything else, a heading a panel; from where they are declared."""
    options: type[Options] = CompareOptions if which == "compare" else PruneOptions
    every = [each for each in options.options() if which != "compare" or "compare" in each.told.of]
    parts = []
    for panel in PANELS:
        rows = [row(each, which) for each in every if each.panel == panel]
        if rows:
            columns = ["option", "values", "default", "", *(["taken by"] if which != "compare" else [])]
            parts.append("\n".join([f"### {panel}", "", line(columns), line(["---"] * len(columns)), *rows, ""]))
    return "\n".join(parts)


def row(option: Option, which: str) -> str:
    told = option.told
    default = told.shown_default or ("" if option.default in (None, []) else _plain(option.default))
    name = f"`{option.name}`" + (" (Python)" if told.on == "python" else "")
    values = ", ".join(f"`{choice}`" for choice in option.choices) or f"`{told.metavar or option.kind.__name__}`"
    cells = [name if told.on == "python" else f"`{option.flag}`", values, default, told.help]
    if which != "compare":
        cells.append(", ".join(f"`{COMMANDS.get(one, one)}`" for one in sorted(told.of)))
    return line(cells)


def _plain(value: Any) -> str:
    return "on" if value is True else "off" if value is False else "" if callable(value) else f"`{value}`"


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
