"""A comparison as tables, files and pictures."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from prunecomp.compare import Arm, ArmWork, Comparison, Measurement, Text
from prunecomp.errors import JournalError, OptionError, OutputError
from prunecomp.report import drawing
from prunecomp.report.comparison import (
    comparison_tables,
    csv_text,
    load_record,
    markdown,
    save_record,
    save_tables,
    saving,
)
from prunecomp.report.plots import best_of, perplexity_figure, save_plots

ARMS = [Arm("bi", "none"), Arm("bi", "scale"), Arm("span", "scale", one_shot=True, parity="official")]
PERPLEXITY = {ARMS[0]: {2: 12.0, 4: 30.0}, ARMS[1]: {2: 11.5, 4: 30.0}, ARMS[2]: {2: 14.25, 4: math.inf}}


@pytest.fixture
def result() -> Comparison:
    texts = [Text(name, f"{name}.txt", 7, 64, "0" * 64) for name in ("wikitext2-test", "own [bold]text")]
    return Comparison(
        model="a/model",
        num_layers=16,
        layers=[2, 4],
        calibration=Text("calibration", "c.txt", 8, 64, "1" * 64),
        texts=texts,
        dense={text.name: 10.0 for text in texts},
        measurements=[
            Measurement(arm, n, [3, 1][:n], [1.0, 1.25], {text.name: value for text in texts}, 16 + n, 1.5)
            for arm, values in PERPLEXITY.items()
            for n, value in values.items()
        ],
        work=[ArmWork(arm, 20, 3.25, 1000) for arm in ARMS],
        window_forwards=1500,
        seconds=12.0,
        identity={"model": "abc", "options": {"dtype": "bfloat16"}},
    )


def test_the_record_comes_back_from_json(result: Comparison, tmp_path: Path) -> None:
    save_record(result, tmp_path / "new")
    assert load_record(tmp_path / "new") == result
    record = json.loads((tmp_path / "new" / "comparison.json").read_text())
    assert (record["saving"], record["window_forwards_separately"]) == (2.0, 3000)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": "a"}'])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(JournalError, match=r"comparison\.json cannot be read"):
        load_record(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(result: Comparison, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for save in (save_record, save_tables, save_plots):
        with pytest.raises(OutputError, match="file"):
            save(result, tmp_path / "file")


def test_markdown_has_a_table_for_each_text_with_the_best_arms_in_bold(result: Comparison) -> None:
    lines = markdown(result).splitlines()
    assert lines[:6] == [
        "- model: a/model, 16 layers",
        "- calibration: c.txt, 8 windows of 64 tokens",
        "- wikitext2-test: wikitext2-test.txt, 7 windows of 64 tokens",
        "- own [bold]text: own [bold]text.txt, 7 windows of 64 tokens",
        "- computed in: bfloat16",
        "",
    ]
    assert lines[6:16] == [
        "## wikitext2-test",
        "",
        "Perplexity over 7 windows of 64 tokens.",
        "",
        "| arm | N = 2 | N = 4 |",
        "| --- | ---: | ---: |",
        "| dense | 10.00 | 10.00 |",
        "| bi, iterative | 12.00 | **30.00** |",
        "| bi + scale, iterative | **11.50** | **30.00** |",
        "| span + scale, one-shot | 14.25 | inf |",
    ]
    assert "## own [bold]text" in lines
    assert "| bi + scale, iterative | 20 | 3.2 | 0 | 0.0 |" in lines
    assert lines[-1].endswith("arms one by one would have taken 3,000, 2.00 times as many.")


def test_a_cell_without_a_number_says_why(result: Comparison) -> None:
    partial = replace(result, measurements=result.measurements[:3], sittings=2)
    assert "| bi + scale, iterative | **11.50** | not measured |" in markdown(partial)
    assert "| span + scale, one-shot | not measured | not measured |" in markdown(partial)
    assert saving(partial).endswith("in 2 sittings.")
    perplexity_figure(partial)


def test_csv_has_a_row_for_each_arm_number_of_layers_and_text(result: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(result))))
    assert len(rows) == 2 + 3 * 2 * 2
    assert rows[0]["metric"] == "dense"
    assert rows[-1] == {
        "metric": "span", "compensation": "scale", "mode": "one-shot", "parity": "official", "layers": "4",
        "text": "own [bold]text", "perplexity": "inf", "removed": "3 1", "scales": "1.0 1.25", "layer_forwards": "20",
        "seconds": "1.5", "kl": "", "top1": "", "repair": "none", "ridge": "", "taken": "", "repair_layer_forwards": "",
        "repair_seconds": "", "task": "", "task_metric": "", "score": "", "retained": "",
    }  # fmt: skip


def test_tables_for_a_terminal_show_names_as_they_are(result: Comparison) -> None:
    console = Console(file=io.StringIO(), width=100)
    for table in comparison_tables(result):
        console.print(table)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "own [bold]text" in printed
    assert "11.50" in printed
    assert "[/bold]" not in printed


def test_plots_are_pictures_with_a_line_an_arm(result: Comparison, tmp_path: Path) -> None:
    for path in save_plots(result, tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3
    figure = perplexity_figure(result)
    lines = figure.axes[0].get_lines()[: len(ARMS)]
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == len(ARMS), "told apart without colour"
    assert list(lines[0].get_xdata()) == [0, 2, 4]
    assert figure.axes[0].get_yscale() == "log"
    assert len(figure.axes) == 2


def test_the_best_arm_stands_out_and_no_colour_comes_twice(result: Comparison) -> None:
    text = result.texts[0].name
    assert best_of(result, text) == ARMS[0], "the first of two with 30.0 after 4 removals"
    lines = perplexity_figure(result).axes[0].get_lines()[: len(ARMS)]
    widths = [line.get_linewidth() for line in lines]
    assert widths[0] > 2 * widths[1] == 2 * widths[2]
    assert len({line.get_color() for line in lines}) == len(ARMS)
    for count in (1, 10, 11, 40):
        assert len(set(drawing.colours(count))) == count


@pytest.mark.parametrize(("texts", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (4, (2, 2)), (5, (3, 2))])
def test_texts_stand_two_by_two(result: Comparison, texts: int, shape: tuple[int, int]) -> None:
    many = [replace(result.texts[0], name=str(number)) for number in range(texts)]
    values = {text.name: 11.0 for text in many}
    measured = [replace(one, perplexity=values) for one in result.measurements]
    figure = perplexity_figure(replace(result, texts=many, dense=values, measurements=measured))
    assert len(figure.axes) == texts
    assert {axes.get_subplotspec().get_gridspec().get_geometry() for axes in figure.axes} == {shape}
    width, height = figure.get_size_inches()
    assert width < 3.2 * height, "no strip"


def test_one_number_of_layers_gives_bars(result: Comparison) -> None:
    one = replace(result, layers=[2], measurements=[m for m in result.measurements if m.layers == 2])
    axes = perplexity_figure(one).axes[0]
    assert [patch.get_width() for patch in axes.patches] == [12.0, 11.5, 14.25]
    colours = [patch.get_facecolor() for patch in axes.patches]
    assert colours[0] == colours[2] != colours[1], "the best one has a colour of its own"
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[10.0, 10.0]], "the dense model"


def test_without_matplotlib_the_extra_is_named(
    result: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "INSTALLED", False)
    with pytest.raises(OptionError, match=r"prunecomp\[report\]"):
        save_plots(result, tmp_path)
