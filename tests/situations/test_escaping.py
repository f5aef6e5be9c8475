"""Names and licences come from anywhere, and mean nothing in the medium that they go to."""

from __future__ import annotations

import csv
import io
import logging
import re
import shutil
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console as RichConsole
from safetensors.numpy import save_file

from prunecomp.checkpoint.card import model_card
from prunecomp.cli import inspecting
from prunecomp.compare import Arm, Comparison
from prunecomp.compare.results import ArmWork, Measurement, Text
from prunecomp.io.escape import code, code_block, csv_cell, markdown, one_line, plot_label
from prunecomp.model.source.licence import Licence
from prunecomp.report.comparison import comparison_tables, csv_text
from prunecomp.report.comparison import markdown as comparison_markdown
from prunecomp.report.console import Console
from prunecomp.report.drawing import INSTALLED
from prunecomp.report.plots import perplexity_figure
from prunecomp.report.tables import info_table
from tests.situations.folders import edit_json
from tests.situations.small import Small, invoke, said, small

__all__ = ["small"]

HOSTILE = ["mit\n# Owned", "x[/b]", "[red]x", "\x1b[31mred\x1b[0m", "a|b|c", "`rm`", "<b>x</b>", "![x](http://e)",
           "=1+1", "@SUM(A1)", "$\\frac{1}{0}$", "$$", "\u202eevil", "a\r\nb", "---", "--- \nlicense: mit",
           "| a |\n| - |", "**b**", "_x_", "```\nx", "\u2028", "\x9b31m", "\t=1",
           "&lt;", ":smile:", "\ud800", "%s", "{x}"]  # fmt: skip
names = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(
        alphabet=st.sampled_from(list("a#[]()<>|`*_~$&\\\n\r\t\x1b\x00\x9b\u202e\u2066\u2028=+-@!:/{}'\" ")), min_size=1
    ),
    st.text(min_size=1, max_size=30),
)


def safe(text: str) -> bool:
    """Whether a terminal only prints it."""
    return all(unicodedata.category(c) not in ("Cc", "Cf", "Zl", "Zp", "Cs") for c in text.replace("\n", ""))


def unescaped(cell: str) -> str:
    """What Markdown shows of an inline text without markup."""
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*|~]", cell), cell
    assert not re.search(r"[<>]", cell), cell
    assert "](" not in cell.replace("\\]", ""), cell
    shown = re.sub(r"\\([\\`*|~$_\]])", r"\1", cell)
    shown = re.sub(r"&#(\d+);", lambda found: chr(int(found[1])), shown)
    return shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


@settings(derandomize=True, max_examples=300, deadline=None)
@given(name=names)
def test_text_comes_out_as_it_is_in_every_medium(name: str) -> None:
    line = one_line(name)
    assert safe(line)
    assert "\n" not in line
    assert unescaped(markdown(name)) == line
    span = code(name)
    fence = re.match("`+", span)
    assert fence is not None
    assert not re.search(rf"(?<!`){fence[0]}(?!`)", span[len(fence[0]) : -len(fence[0])])
    block = code_block(name).split("\n")
    assert len(block) == 3
    assert block[0] == block[2]
    assert block[0] not in block[1]
    cell = csv_cell(name)
    assert next(csv.reader(io.StringIO(_row([cell])))) == [cell]
    assert cell.lstrip()[:1] not in ("=", "+", "-", "@")
    assert cell.removeprefix("'") == line or cell == line


def _row(cells: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


@pytest.mark.parametrize(
    "plain", ["calibration.txt", "my_model-2.5 (b)", "wikitext2-test", "own [bold]text", "Modell-Größe"]
)
def test_ordinary_names_stay_as_they_are(plain: str) -> None:
    assert {one_line(plain), markdown(plain), csv_cell(plain), plot_label(plain)} == {plain}
    assert code(plain) == f"`{plain}`"


def card_of(name: str) -> str:
    return model_card(
        f"{name}/{name}",
        {
            "num_layers": 6, "prunecomp": "1", "versions": {}, "repair": {"taken": name},
            "options": {"metric": name, "compensation": name, "fold": "up"},
            "rounds": [{"block": [2], "score": 0.5, "scale": 1.25}, {"block": [3], "score": None, "scale": 0.75}],
            "calibration": {"source": name, "windows": 2, "seqlen": 8, "bos": "start", "digest": "abc"},
            "perplexity": {"source": name, "windows": 2, "seqlen": 8, "dense": 3.0, "pruned": 4.0, "measured_on": "x"},
            "verified": {"tensors": 1, "logits_error": 0.5},
        },
        Licence({"license": name, "license_name": [name]}), name, f"prunecomp {name}",
    )  # fmt: skip


@settings(derandomize=True, max_examples=150, deadline=None)
@given(name=names)
@example(name="mit\n# Owned")
@example(name="a\n---\n# b")
def test_a_card_says_what_it_says_of_an_ordinary_model(name: str) -> None:
    text = card_of(name)
    assert safe(text)
    _, front, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    stated = yaml.safe_load(front)
    assert stated["license"] == one_line(name)
    assert stated["base_model"] == one_line(f"{name}/{name}")
    assert list(stated) == ["base_model", "library_name", "pipeline_tag", "tags", "license", "license_name"]
    plain = card_of("x").split("---\n", 2)[2]
    kinds = [re.match(r"(# |\| |- |`{3,}|)", line)[0][:1] for line in body.strip("\n").split("\n")]  # type: ignore[index]
    assert kinds == [re.match(r"(# |\| |- |`{3,}|)", line)[0][:1] for line in plain.strip("\n").split("\n")]  # type: ignore[index]


def comparison_of(name: str) -> Comparison:
    arm = Arm(name, "scale")
    return Comparison(
        model=name, num_layers=6, layers=[1, 2], calibration=Text("calibration", name, 2, 8, "d"),
        texts=[Text(name, name, 2, 8, "d")], dense={name: 3.0},
        measurements=[Measurement(arm, n, [2], [1.5], {name: 4.0 + n}, 6.0, 0.5) for n in (1, 2)],
        work=[ArmWork(arm, 6.0, 0.5, 24)], window_forwards=24, seconds=0.5,
    )  # fmt: skip


@settings(derandomize=True, max_examples=150, deadline=None)
@given(name=names)
def test_a_comparison_has_its_rows_and_columns_whatever_names_are(name: str) -> None:
    result = comparison_of(name)
    rows = list(csv.reader(io.StringIO(csv_text(result))))
    assert {len(row) for row in rows} == {22}
    assert len(rows) == 4
    assert rows[1][5] == csv_cell(name)
    text = comparison_markdown(result)
    assert safe(text)
    lines = text.split("\n")
    assert len(lines) == len(comparison_markdown(comparison_of("x")).split("\n"))
    table = [re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("|")]
    assert [len(cells) for cells in table] == [5] * 4 + [7] * 3
    for console in (Console, RichConsole):
        out = io.StringIO()
        printed = console(file=out, width=10_000, force_terminal=False)
        for one in comparison_tables(result):
            printed.print(one)
        assert safe(out.getvalue())
        assert one_line(name).strip() in out.getvalue()


@settings(derandomize=True, max_examples=100, deadline=None)
@given(name=names)
def test_a_terminal_prints_a_name_and_nothing_else(name: str) -> None:
    for console in (Console, RichConsole):
        out = io.StringIO()
        console(file=out, width=10_000).print(info_table({"model": name, "writers": [name]}))
        assert safe(out.getvalue())
        assert out.getvalue().count(one_line(name).strip()) >= 2
    out = io.StringIO()
    Console(file=out, width=10_000, force_terminal=True, color_system="truecolor").print(
        f"wrote {name}", highlight=False
    )
    assert out.getvalue() == f"wrote {one_line(name)}\n"


@pytest.mark.skipif(not INSTALLED, reason="matplotlib is not installed")
@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", ["$\\frac{1}{0}$", "$", "a$b$", "_x", "a\\$b$", "=$\\x$"])
def test_a_plot_shows_a_name_and_no_formula(name: str) -> None:
    figure = perplexity_figure(comparison_of(name))
    figure.canvas.draw()
    assert len(figure.legends[0].get_texts()) == 2
    assert not any(
        text.get_parse_math() and "$" in text.get_text().replace("\\$", "") for text in figure.legends[0].get_texts()
    )


@pytest.mark.parametrize("name", ["x[/b]", "a[red]b", "e\x1b[31mf", "mit\n# Owned", "=1+1", "a|b", "$x$"])
def test_a_whole_run_with_a_hostile_name(small: Small, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    shutil.copytree(small.folder, folder)
    text = tmp_path / f"{name}.npy"
    shutil.copy(small.windows, text)
    (folder / "README.md").write_text('---\nlicense: "mit\\n# Owned"\n---\n')
    out = tmp_path / f"out {name}"
    for words in (
        ["info", folder],
        ["score", folder, "--calibration", text],
        ["eval", folder, "--eval", text],
        ["plan", folder, "--layers", 1],
        ["prune", folder, "--layers", 1, "--calibration", text, "--eval", text, "--out", out],
        ["compare", folder, "--layers", 1, "--calibration", text, "--eval", text, "--out", tmp_path / "c"],
    ):
        result = invoke(*words)
        assert result.exit_code == 0, result.output
        assert safe(said(result))
    card = (out / "README.md").read_text()
    assert [line for line in card.split("\n") if line.startswith("# ")] == [f"# {markdown(folder.name)}, 5 of 6 layers"]
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit\\n# Owned"
    assert (tmp_path / "c" / "comparison.md").read_text().split("\n").count(f"## {markdown(text.stem)}") == 1
    broken = invoke("info", folder / name)
    assert broken.exit_code == 3
    assert safe(said(broken))
    assert "\x1b" not in broken.output


def test_names_inside_a_checkpoint_are_escaped_in_errors(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.folder, tmp_path / "model")
    save_file({"\x1b[31mmodel.x\nerror: Owned": np.zeros(2, np.float32)}, tmp_path / "model" / "model.safetensors")
    result = invoke("eval", tmp_path / "model", "--eval", small.windows)
    assert result.exit_code == 3
    assert safe(result.output)
    assert not any(line.startswith("error: Owned") for line in result.output.split("\n"))


def test_what_other_libraries_log_of_a_config_is_escaped(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.folder, tmp_path / "model")
    hostile = "\x1b[31m\u202ex\nerror: all is well"
    edit_json(tmp_path / "model" / "config.json", rope_parameters={"rope_type": hostile, "rope_theta": 1e4})
    heard: list[str] = []
    listener, library = logging.Handler(), logging.getLogger("transformers")
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    library.addHandler(listener)
    try:
        ended = invoke("info", tmp_path / "model")
    finally:
        library.removeHandler(listener)
    assert ended.exit_code == 3
    assert any("rope_type" in line for line in heard)
    assert all(safe(line) and "\n" not in line for line in heard)
    assert logging.getLogRecordFactory() is logging.LogRecord


def test_warnings_of_other_libraries_are_escaped(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*given: object, **options: object) -> dict[str, object]:
        warnings.warn("of \x1b[31m\nerror: x", UserWarning, stacklevel=2)
        return {"model": "x"}

    heard: list[str] = []
    monkeypatch.setattr(inspecting, "describe", warn)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *more, **options: heard.append(str(message)))
    assert invoke("info", small.folder).exit_code == 0
    assert heard == ["of \\x1b[31m\\nerror: x"]
