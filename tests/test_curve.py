"""Several numbers of layers in one run: each model is the one of a run of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.errors import OptionError, OutputError
from prunecomp.names import REPORT
from tests.command_line import invoke
from tests.models import build, draw_tokens
from tests.situations.small import Small, said, small

__all__ = ["small"]

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"preset": "paper"},
    "joint": {"repair": "joint"},
    "one-shot": {"one_shot": True},
    "search": {"compensation": "search", "metric": "ppl"},
    "given": {"metric": "given", "given": [3, 1, 4], "repair": "none"},
    "taylor": {"metric": "taylor", "preset": "paper"},
}
CLOCKED = ("seconds", "cost", "command")


def timeless(value: Any) -> Any:
    """Without what a clock says, what memory there was, and how the run was asked for."""
    if isinstance(value, dict):
        return {name: timeless(one) for name, one in value.items() if name not in CLOCKED}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, Any]:
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != REPORT}
    return {**files, "prunecomp.json": timeless(json.loads(files["prunecomp.json"]))}


@pytest.mark.parametrize("way", WAYS)
def test_each_export_is_the_one_of_a_run_of_its_own(way: str, tmp_path: Path, generator: torch.Generator) -> None:
    """Weights, scales, layer-forwards and numbers measured, bit for bit: all but what a clock says."""
    model = build("llama", num_hidden_layers=11)  # the metric taylor lets neither of the outer ones go
    tokens, text = draw_tokens(model, generator), draw_tokens(model, generator)
    found = prunecomp.curve(model, "1-3", tokens, eval=text, **WAYS[way])
    found.save(tmp_path / "curve")
    for layers in (1, 2, 3):
        prunecomp.prune(model, layers, tokens, eval=text, **WAYS[way]).save(tmp_path / f"{layers}")
        assert contents(tmp_path / "curve" / str(layers)) == contents(tmp_path / f"{layers}")


def test_blocks_stop_at_multiples_and_at_the_end(generator: torch.Generator) -> None:
    model = build("llama", num_hidden_layers=8)
    tokens = draw_tokens(model, generator)
    options: dict[str, Any] = {"metric": "span", "span": 2, "preset": "paper"}
    found = prunecomp.curve(model, [2, 4, 5], tokens, **options)
    for result, layers in zip(found, (2, 4, 5), strict=True):
        alone = prunecomp.prune(model, layers, tokens, **options)
        assert timeless(result.record()) == timeless(alone.record())


def test_a_block_that_finds_no_room_is_told_of(generator: torch.Generator) -> None:
    """Of layers 0, 1 and 3, two go together once: then one is left over, and 4 is not on the way to 5."""
    model = build("llama", num_hidden_layers=8)
    with pytest.raises(OptionError, match="--curve: once 2 layers are gone no block of --span 2 is left, and 4 do not"):
        prunecomp.curve(
            model, [2, 4, 5], draw_tokens(model, generator), metric="bi", span=2, candidates=[0, 1, 3, 5, 7]
        )


@pytest.mark.parametrize(
    ("layers", "options", "words"),
    [
        ("1-3", {"metric": "span"}, "--curve: --metric span removes all layers in one block"),
        ("1-4", {"span": 2}, "--curve 1: --span 2 removes so many layers at a time"),
        ("0-2", {}, "give how many layers go, each time, as in 1-10"),
        ([], {}, "give how many layers go"),
        ("1-9", {}, "only 6 of the model's 6 layers are candidates"),
    ],
)
def test_what_no_loop_passes_is_refused(
    layers: Any, options: dict[str, Any], words: str, generator: torch.Generator
) -> None:
    model = build("llama")
    with pytest.raises(OptionError, match=words):
        prunecomp.curve(model, layers, draw_tokens(model, generator), **options)


def test_the_cost_is_that_of_the_repairs(generator: torch.Generator) -> None:
    """The loop is the largest one's, and so is its repair; the dense model is run over the text once, 6 layers, and
    each pruned one from where it first differs at most."""
    model = build("llama")
    tokens, text = draw_tokens(model, generator), draw_tokens(model, generator)
    found = prunecomp.curve(model, "1-3", tokens, eval=text)
    cost = found.cost()
    repairs = [result.repair.layer_forwards for result in found if result.repair is not None]
    assert len(repairs) == 3
    assert cost["layer_forwards"] - cost["largest_alone"]["layer_forwards"] == pytest.approx(sum(repairs[:2]))
    assert 6 < cost["largest_alone"]["evaluation_forwards"] < cost["evaluation_forwards"] <= 6 + 5 + 4 + 3
    assert found.told_cost().endswith("s more than 3 layers alone")
    assert [row[0] for row in found.rows()] == ["gone", "0", "1", "2", "3"]


def test_a_command_writes_a_folder_a_model(small: Small, tmp_path: Path) -> None:
    """``--curve`` and ``--layers`` are one: a folder a model, the table beside them; nothing hidden stays."""
    words = ["prune", small.folder, "--calibration", small.windows, "--eval", small.windows, "--repair", "none"]
    out = tmp_path / "out"
    assert invoke(*words, "--curve", "1-3", "--out", out).exit_code == 0
    record = json.loads((out / "curve.json").read_text())
    assert [stop["layers"] for stop in record["stops"]] == [1, 2, 3]
    assert "| gone |" in (out / "curve.md").read_text()
    alone = invoke(*words, "--layers", 2, "--out", tmp_path / "two")
    assert alone.exit_code == 0
    for name in ("model.safetensors", "config.json"):
        assert (out / "2" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    measured = json.loads((out / "2" / "prunecomp.json").read_text())["perplexity"]["pruned"]
    assert record["stops"][1]["perplexity"] == measured
    shown = invoke(*words, "--layers", "1,3", "--json")
    assert [stop["layers"] for stop in json.loads(shown.stdout)["stops"]] == [1, 3]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_killed_curve_goes_on(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["prune", small.folder, "--calibration", small.windows, "--repair", "none", "--curve", "1-3", "--out"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert invoke(*words, whole).exit_code == 0
    save = prunecomp.PruneResult.save

    def stopping(self: Any, path: Any, **options: Any) -> Path:
        if Path(path).name == "2":
            raise OutputError("stopped")
        return save(self, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(prunecomp.PruneResult, "save", stopping)
        assert invoke(*words, out).exit_code == OutputError.exit_code
    assert sorted(path.name for path in out.iterdir()) == ["1"]
    first = (out / "1" / "prunecomp.json").stat().st_ino
    assert "go on with it by --resume" in said(invoke(*words, out)) or "exists and is not" in said(invoke(*words, out))
    assert invoke(*words, out, "--resume").exit_code == 0
    assert (out / "1" / "prunecomp.json").stat().st_ino == first
    for layers in "123":
        assert (out / layers / "model.safetensors").read_bytes() == (whole / layers / "model.safetensors").read_bytes()
    assert not (tmp_path / ".out.journal.json").exists()
