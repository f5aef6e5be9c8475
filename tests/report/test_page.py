"""The report: one file that fetches nothing, in which no name is markup, with all that the record has and no more."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import prunecomp
from prunecomp.cli.reporting import report_beside
from prunecomp.errors import OptionError, OutputError
from prunecomp.io.escape import one_line
from prunecomp.report import curve, drawing, exported, target
from prunecomp.report.curve import curve_sections
from prunecomp.report.figures import draw_probes, draw_scores, draw_seconds, lines_on
from prunecomp.report.page import Answers, Command, Facts, Grid, Picture, Section, Strip, Tiles, page
from prunecomp.report.writing import report_of, write_report
from tests.models import build, draw_tokens
from tests.report.records import HOSTILE, profile_of
from tests.seeds import seed


class Page(HTMLParser):
    """Headings, texts, tags, ids and every place that an attribute leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._within = tag if tag == "h2" else self._within

    def handle_endtag(self, tag: str) -> None:
        self._within = "" if tag == "h2" else self._within

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._within == "h2":
            self.headings.append(data)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take their time, and not every test looks at them."""
    for module in (exported, curve, target):
        monkeypatch.setattr(module, "svg", lambda *arguments: "<svg></svg>")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a real export, with a profile of two made-up models in it."""
    folder = tmp_path_factory.mktemp("record")
    model = build("llama")
    tokens = draw_tokens(model, torch.Generator().manual_seed(seed()))
    made = prunecomp.prune(model, 2, tokens, eval=tokens, repair="joint").save(folder / "out")
    collected = prunecomp.collect(model, tokens).record()
    found: dict[str, Any] = json.loads((made / "prunecomp.json").read_text())
    return {**found, "profile": profile_of("dense", "pruned"), "collected": collected}


def run_of(folder: Path, record: Mapping[str, Any], name: str = "run") -> Path:
    run = folder / name
    run.mkdir()
    (run / "prunecomp.json").write_text(json.dumps({k: v for k, v in record.items() if k != "collected"}))
    if record.get("collected"):
        (run / "collected.json").write_text(json.dumps(record["collected"]))
    return run


EVERY = ["In short", "Layers", "Rounds", "Repair", "Capabilities", "Text", "Similarity", "What it took",
         "The same prompts", "Do it again"]  # fmt: skip


def test_everything_in_the_record_has_its_section(record: dict[str, Any], tmp_path: Path) -> None:
    text = report_of(run_of(tmp_path, record))
    found = Page(text)
    assert found.headings == EVERY
    shown = " ".join(found.texts)
    for one in record["rounds"]:
        assert f"{one['score']:,.5g}" in shown
    assert record["command"] in shown
    assert record["calibration"]["digest"] in shown
    for model in record["profile"]["models"]:
        for answer in model["written"]:
            assert answer["text"] in shown
    for name in record["cost"]["seconds"]:
        assert {"round": "choosing"}.get(name, name) in shown


@pytest.mark.parametrize(
    ("without", "gone"),
    [
        ("profile", {"Capabilities", "The same prompts"}), ("perplexity", {"Text"}), ("repair", {"Repair"}),
        ("collected", {"Similarity"}), ("cost", set()), ("size", set()), ("command", set()), ("verified", set()),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("without_pictures")
def test_what_a_record_lacks_leaves_no_empty_box(
    record: dict[str, Any], tmp_path: Path, without: str, gone: set[str]
) -> None:
    left = {name: value for name, value in record.items() if name != without}
    for number, lacking in enumerate([left, {**left, without: None}]):
        found = Page(report_of(run_of(tmp_path, lacking, str(number))))
        assert found.headings == [name for name in EVERY if name not in gone]
        assert "None" not in found.texts


@pytest.mark.usefixtures("without_pictures")
def test_a_record_from_before_rounds_were_sure_is_read(record: dict[str, Any], tmp_path: Path) -> None:
    old = copy.deepcopy(record)
    new = ("probability", "runner_up", "margin", "margin_interval", "chosen", "losses")
    old["rounds"] = [{name: value for name, value in one.items() if name not in new} for one in old["rounds"]]
    for name in ("cost", "size", "command", "profile", "collected", "repair", "format"):
        del old[name]
    for name in ("standard_error", "tokens", "agreement"):
        del old["perplexity"][name]
    texts = Page(report_of(run_of(tmp_path, old))).texts
    assert "lowest with" not in texts
    assert "runner-up" not in texts
    assert "layer-forwards" in texts


def test_the_file_fetches_nothing_and_its_ids_are_its_own(record: dict[str, Any], tmp_path: Path) -> None:
    text = report_of(run_of(tmp_path, record))
    found = Page(text)
    assert "script" not in found.tags
    assert {tag for tag in found.tags if tag in ("img", "iframe", "object", "embed", "a", "base", "form")} == set()
    ids = [value for _, name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 20
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href", "srcset", "action"):
            assert value.startswith(("#", "data:")), (tag, value)
        for led in re.findall(r"url\((.*?)\)", value):
            assert led[1:] in ids, led
        if value.startswith("#") and name.endswith("href"):
            assert value[1:] in ids
    assert "default-src 'none'" in text
    assert not re.findall(r"@import|url\((?!#)", text)
    for element in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(element)


def every_block(name: str) -> Section:
    blocks = [Tiles([(name, name, name)]), Facts([(name, name)]), Grid([name], [[name]], name),
              Picture("<svg></svg>", name), Strip(name, [("gone", name, name), ("kept", name, name)]),
              Answers([(name, [(name, name, name)])]), Command(name)]  # fmt: skip
    return Section(name, blocks, name)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text_wherever_it_stands(name: str) -> None:
    found, plain = (Page(page(one, [every_block(one)], one)) for one in (name, "plain"))
    assert found.tags == plain.tags
    assert [(tag, name) for tag, name, _ in found.attributes] == [(tag, name) for tag, name, _ in plain.attributes]
    assert found.texts.count(one_line(name)) == plain.texts.count("plain") - name.count("\n")
    titles = [value for _, attribute, value in found.attributes if attribute == "title"]
    assert titles == [one_line(name)] * 2
    page(name, [every_block(name)], name).encode()


def test_hostile_names_are_text_in_a_picture_and_in_a_whole_report(record: dict[str, Any], tmp_path: Path) -> None:
    element = ElementTree.fromstring(
        drawing.svg("names", HOSTILE[0], 5, 8, partial(draw_seconds, parts=dict.fromkeys(HOSTILE, 1.0)))
    )
    texts = {"".join(one.itertext()).strip() for one in element.iter(f"{{{drawing.SVG}}}text")}
    short = [name for name in HOSTILE if len(name) < drawing.LONGEST_LABEL and "$" not in name and name[0] != "\ufffe"]
    assert {one_line(name) for name in short} <= {text.strip("\u200a") for text in texts}
    drawn = {"svg", "g", "path", "text", "tspan", "use", "defs", "clipPath", "rect"}
    assert {one.tag.rpartition("}")[2] for one in element.iter()} <= drawn
    name, hostile = HOSTILE[0] + HOSTILE[1], copy.deepcopy(record)
    hostile.update(model=f"x/{name}", command=f"prunecomp prune {name}", dtype=name, profile=profile_of(name, name))
    hostile["perplexity"]["source"] = hostile["calibration"]["source"] = f"texts/{name}.txt"
    hostile["repair"].update(taken=name, losses={name: {name: 1.5}})
    hostile["cost"]["seconds"] = {name: 3.0}
    found = Page(report_of(run_of(tmp_path, hostile)))
    assert found.headings == EVERY
    assert not {"script", "img", "b "} & found.tags
    assert f"prunecomp prune {name}" in found.texts


def test_the_heat_map_holds_the_scores() -> None:
    rounds = [{"scores": {"0": 4.0, "1": 1.0, "2": 2.0}, "block": [1]}, {"scores": {"0": 5.0, "2": 3.0}, "block": [2]}]
    figure = drawing.new_figure(4, 3)
    draw_scores(figure, rounds, 3)
    picture = figure.axes[0].images[0].get_array()
    assert picture.filled(-1).tolist() == [[4.0, 1.0, 2.0], [5.0, -1.0, 3.0]]
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[1.0, 1.0], [2.0, 2.0]]


def test_bars_of_the_probes_have_the_interval_around_them() -> None:
    models = profile_of("dense", "pruned")["models"]
    figure = drawing.new_figure(4, 3)
    draw_probes(figure, models)
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [probe["score"] for probe in models[1]["probes"]]
    ends = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
    for probe, (low, high) in zip(models[1]["probes"], ends, strict=True):
        expected = [probe["dense"] + probe["difference"][end] for end in ("low", "high")]
        assert [low, high] == pytest.approx(expected)


@pytest.mark.usefixtures("without_pictures")
def test_a_curve_has_a_row_for_each_export_and_says_what_is_not_measured(record: dict[str, Any]) -> None:
    more = {**record, "removed": [*record["removed"], 0], "perplexity": None, "profile": None}
    first, *others = curve_sections([more, record])
    (grid,) = (block for block in first.blocks if isinstance(block, Grid))
    assert [row[0] for row in grid.rows] == ["2", "3"]
    measured = record["perplexity"]
    assert f"{measured['pruned'] / measured['dense']:.2f}\u00d7" in grid.rows[0]
    assert "not measured" in grid.rows[1]
    assert record["repair"]["taken"] in grid.rows[0]
    grids = [block for block in others[0].blocks if isinstance(block, Grid)]
    assert [list(grid.headings)[1:] for grid in grids[:1]] == [["dense", "2 removed"]]  # 3 have no profile


def test_a_curve_shows_what_each_model_can_do_beside_the_dense_one(
    record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(curve, "svg", lambda name, *more: drawn.append((name, more[-1])) or "<svg></svg>")
    profiles = [profile_of("dense", "pruned") for _ in range(3)]
    for number, probe in enumerate(profiles[1]["models"][1]["probes"], start=1):
        probe["score"] = number / 10
    profiles[2]["models"][0]["written"][0]["text"] = "another dense model"
    records = [{**record, "removed": list(range(n)), "profile": one} for n, one in enumerate(profiles, start=1)]
    _, capabilities, prompts, _ = curve_sections(records)
    lines = dict(drawn)["curve-probes"].keywords["lines"]
    # Of 0.9 + 0.6 + 0.4 problems: 0.5 + 0.6 + 0.45, and 0.1 + 0.2 + 0.3.
    assert lines == {"production": [(0.0, 1.0), (1.0, pytest.approx(1.55 / 1.9)), (2.0, pytest.approx(0.6 / 1.9))]}
    _, probes, generation = capabilities.blocks
    assert isinstance(probes, Grid)
    assert isinstance(generation, Grid)
    assert list(probes.headings) == ["probe", "dense", "1 removed", "2 removed"]
    assert [row[1:] for row in probes.rows] == [["90%", "50%", "10%"], ["60%", "60%", "20%"], ["40%", "45%", "30%"]]
    assert [row[0] for row in generation.rows] == ["dense", "1 removed", "2 removed"]
    (answers,) = prompts.blocks
    assert isinstance(answers, Answers)
    assert [name for name, *_ in answers.each[0][1]] == ["dense", "1 removed", "2 removed"]


@pytest.mark.usefixtures("without_pictures")
def test_a_folder_of_exports_gives_the_curve(record: dict[str, Any], tmp_path: Path) -> None:
    for number in ("1", "2"):
        run_of(tmp_path, {**record, "collected": None}, number)
    assert Page(report_of(tmp_path)).headings == ["The curve", "Capabilities", "The same prompts"]
    run_of(tmp_path, {**record, "model": "another", "collected": None}, "3")
    with pytest.raises(OptionError, match="different models"):
        report_of(tmp_path)


@pytest.mark.usefixtures("without_pictures")
def test_of_a_curve_only_its_own_exports_are_shown(record: dict[str, Any], tmp_path: Path) -> None:
    for number in ("1", "2", "4"):
        run_of(tmp_path, {**record, "collected": None}, number)
    (tmp_path / "curve.json").write_text(json.dumps({"stops": [{"layers": 1}, {"layers": 2}]}))
    assert "2 exports" in report_of(tmp_path)


@pytest.mark.usefixtures("without_pictures")
def test_a_curve_has_its_cost_beside_that_of_the_largest_alone(record: dict[str, Any]) -> None:
    cost = {"layer_forwards": 30.5, "evaluation_forwards": 12, "seconds": 1234.56}
    alone = {"layer_forwards": 20.25, "evaluation_forwards": 8, "seconds": 234.5}
    *_, took = curve_sections([record], {**cost, "largest_alone": alone})
    (grid,) = took.blocks
    assert isinstance(grid, Grid)
    assert [row[1:] for row in grid.rows] == [["30.5", "12", "1,234.6"], ["20.25", "8", "234.5"]]
    assert grid.rows[1][0] == f"{len(record['removed'])} removed, in a run of its own"


@pytest.mark.usefixtures("without_pictures")
def test_tasks_are_shown_beside_the_dense_score(record: dict[str, Any]) -> None:
    profiles = [profile_of("dense", "pruned") for _ in range(2)]
    for number, one in enumerate(profiles, start=1):
        for model, score in zip(one["models"], (0.8, 0.8 - 0.2 * number), strict=True):
            between = {"low": -0.3, "high": -0.1} if score < 0.8 else {"low": 0.0, "high": 0.0}
            task = {"task": "<b>", "metric": "acc", "score": score, "error": 0.05, "dense": 0.8, "items": 12,
                    "difference": between, "retained": score / 0.8}  # fmt: skip
            model["tasks"] = [task]
    records = [{**record, "removed": list(range(n)), "profile": one} for n, one in enumerate(profiles, start=1)]
    expected = ["<b> (acc, 12)", "0.800 ± 0.050", "0.600 ± 0.050 (75%; -0.300 to -0.100)"]
    for sections, rows in (
        (exported.sections_of(records[0]), [expected]),
        (curve_sections(records), [[*expected, "0.400 ± 0.050 (50%; -0.300 to -0.100)"]]),
    ):
        (section,) = (each for each in sections if each.title == "Capabilities")
        assert rows in [block.rows for block in section.blocks if isinstance(block, Grid)]


def strip_of(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = exported._strip(record)
    assert isinstance(found, Strip)
    return list(found.cells)


def test_the_strip_shows_the_seams_and_layers_that_the_export_has(record: dict[str, Any]) -> None:
    rounds = [{**one, "scale": 1.5} for one in record["rounds"]]
    none = {**record["repair"], "taken": "none", "gaps": []}
    assert "seam" not in {kind for kind, *_ in strip_of({**record, "rounds": rounds, "repair": none})}
    assert "seam" in {kind for kind, *_ in strip_of({**record, "rounds": rounds, "repair": {**none, "taken": "loop"}})}
    gaps = [{**gap, "condition": 1.5} for gap in record["repair"]["gaps"]]
    cells = strip_of({**record, "repair": {**record["repair"], "gaps": gaps}})
    lowest = min(gap["layers"][-1] for gap in gaps)
    assert {kind for kind, layer, _ in cells if kind != "seam" and int(layer) > lowest} <= {"gone", "fitted"}


def test_seconds_of_an_export_without_a_clock_for_each_part_are_those_of_its_rounds(record: dict[str, Any]) -> None:
    cost = {**record["cost"], "seconds": {"writing": 1.0}}
    rounds = [{**one, "seconds": 2.0} for one in record["rounds"]]
    picture = next(iter(exported._cost({**record, "cost": cost, "rounds": rounds, "seconds": 9.0})))
    assert isinstance(picture, Picture)
    assert "choosing" in str(picture.svg)


def test_an_arm_that_was_not_measured_has_no_bar() -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    lines_on(axes, {"one": [(0, 1.0), (2, 3.0)], "two": [(0, 1.0)]}, "layers removed", "times")
    assert [bar.get_width() for bar in axes.patches] == [3.0]


def test_a_file_that_is_no_report_is_not_replaced(record: dict[str, Any], tmp_path: Path) -> None:
    run = run_of(tmp_path, record)
    with pytest.raises(OutputError, match="is no report"):
        write_report(run, run / "prunecomp.json")


@pytest.mark.usefixtures("without_pictures")
def test_an_odd_record_is_told_in_words(record: dict[str, Any], tmp_path: Path) -> None:
    answer = {"prompt": "x", "text": None, "tokens": [1], "ended": True}
    models = [{**model, "written": [answer]} for model in record["profile"]["models"]]
    odd = [{**record, "num_layers": 0}, {**record, "profile": {**record["profile"], "models": models}}]
    for number, one in enumerate(odd):
        with pytest.raises(OptionError, match="not as prunecomp writes it"):
            report_of(run_of(tmp_path, one, str(number)))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "neither prunecomp.json nor comparison.json"), ("[]", "prunecomp.json"), ('{"model": "x"}', "not as")],
)
def test_what_is_no_record_is_refused(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "prunecomp.json").write_text(content)
    with pytest.raises(OptionError, match=message):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["prunecomp.json"])
    report_beside(tmp_path)
    assert capsys.readouterr().err.startswith("no report: ")


@pytest.mark.usefixtures("without_pictures")
def test_a_place_that_cannot_be_written_to_is_named(record: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        write_report(run_of(tmp_path, record), tmp_path / "nowhere" / "report.html")
