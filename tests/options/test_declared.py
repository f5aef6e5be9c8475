"""Options are declared once: keywords, flags, records and the documentation's table are read from there."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

import prunecomp
from prunecomp.cli import app
from prunecomp.compare import PRESETS
from prunecomp.compensation import COMPENSATIONS
from prunecomp.errors import OptionError
from prunecomp.metrics import METRICS
from prunecomp.model.loader import DTYPES
from prunecomp.names import CompensationName, Dtype, MetricName, PresetName
from prunecomp.options import CompareOptions, PruneOptions
from tests import keywords
from tests.command_line import invoke
from tests.situations.small import Small, said, small

__all__ = ["small"]

COMMANDS = {"prune": PruneOptions, "score": PruneOptions, "plan": PruneOptions, "compare": CompareOptions}
SOURCES = {"--config", "--like"}
"""Flags of the command line alone, that say where options come from."""


def test_the_keywords_are_those_that_are_declared() -> None:
    assert keywords.FILE.read_text() == keywords.written(), "python -m tests.keywords"


@pytest.mark.parametrize("function", keywords.FUNCTIONS)
def test_every_function_takes_its_keywords_and_no_other(function: str) -> None:
    options = CompareOptions if function == "compare" else PruneOptions
    positional = [
        each.name for each in inspect.signature(getattr(prunecomp, function)).parameters.values()
        if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]  # fmt: skip
    declared = {each.name for each in options.options(function, "python")}
    assert set(keywords.keywords(function)) == declared - set(positional)
    with pytest.raises(TypeError, match=r"takes no option sampels: did you mean samples\?|takes no option sampels"):
        getattr(prunecomp, function)(*["x"] * len(positional), sampels=3)


def test_literals_name_what_there_is() -> None:
    assert list(get_args(MetricName)) == list(METRICS)
    assert list(get_args(CompensationName)) == list(COMPENSATIONS)
    assert get_args(Dtype) == ("auto", *DTYPES)
    assert get_args(PresetName) == tuple(PRESETS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_are_those_that_are_declared(command: str) -> None:
    flags = {
        name for argument in app[command].assemble_argument_collection() for name in argument.names
        if name.startswith("--") and not name.startswith("--no-")
    }  # fmt: skip
    assert flags - SOURCES == {row["flag"] for row in COMMANDS[command].table(command)}
    assert all(row["help"] and row["group"] for row in COMMANDS[command].table(command))


def test_the_record_has_the_names_that_journals_have() -> None:
    assert set(PruneOptions(calibration="x").record()) == {
        "layers", "samples", "seqlen", "seed", "documents", "bos", "dtype", "device", "metric", "compensation",
        "repair", "ridge", "one_shot", "fold", "keep", "candidates", "given", "span", "lookahead", "confidence",
        "parity", "attn", "compile", "backend",
    }  # fmt: skip


def test_what_the_command_line_understands_python_understands(small: Small) -> None:
    tokens = np.load(small.windows)
    one = prunecomp.prune(small.folder, 2, tokens, keep="0-2", device_memory="1GB", preset="paper")
    other = prunecomp.prune(small.folder, 2, tokens, keep=[2, 1, 0], device_memory=10**9, preset="paper")
    assert one.removed == other.removed
    assert one.options.record() == other.options.record()
    assert one.options.beside() == {"device_memory": 10**9}
    assert prunecomp.prune(small.folder, 2, tokens, metric="given", given="4,3", preset="paper").removed == [4, 3]
    measured = prunecomp.compare(small.folder, "1-2", tokens, eval={"x": tokens}, metrics="bi,last")
    assert measured.layers == [1, 2]
    assert [arm.metric for arm in measured.arms] == ["bi"] * 3 + ["last"] * 3


def test_a_typo_names_the_nearest(small: Small) -> None:
    with pytest.raises(OptionError, match=r"prune\(\) takes no option metrik: did you mean metric\?"):
        prunecomp.prune(small.folder, 2, "x", metrik="ppl", preset="paper")  # type: ignore[call-arg]
    answer = invoke("prune", small.folder, "--metrik", "ppl")
    assert answer.exit_code == 2
    assert "--metric" in said(answer)


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (["prune", "--layers", "2", "--json"], 2, "OptionError"),
        (["prune", "x", "--layrs", "2", "--json"], 2, "OptionError"),
        (["prune", "x", "--layers", "two", "--json", "--calibration", "x", "--out", "o"], 2, "OptionError"),
        (["info", "/no/such/model", "--json"], 3, "CheckpointError"),
    ],
)
def test_with_json_an_error_is_json_too(words: list[str], code: int, kind: str) -> None:
    answer = invoke(*words)
    told = json.loads(answer.stdout)["error"]
    assert (answer.exit_code, told["kind"], told["exit_code"]) == (code, kind, code)
    assert " ".join(told["message"].split()) in " ".join(answer.stderr.split())


def test_help_and_version_need_no_torch() -> None:
    program = "import sys; from prunecomp.cli import call; call({words}); assert 'torch' not in sys.modules"
    for words in (["--help"], ["prune", "--help"], ["--version"]):
        ended = subprocess.run([sys.executable, "-c", program.format(words=words)], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == prunecomp.__version__


def test_everyday_panels_come_first_in_help() -> None:
    shown = invoke("prune", "--help").stdout
    panels = ["Run", "Choice of layers", "Calibration", "Output", "Hardware and loading"]
    places = [shown.index(f"─ {panel} ─") for panel in panels]
    assert places == sorted(places)
    assert shown.index("--layers") < shown.index("--keep")


def test_options_come_from_a_file(small: Small, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f'calibration = "{small.windows}"\nlayers = 1\nseed = 7\n[prune]\nlayers = 2\nkeep = "0-1"\n'
        f'candidates = [2, 3, 4]\ncalibration = "{small.windows}"\none-shot = true\n[compare]\nlayers = "1-2"\n'
    )
    answer = invoke("prune", small.folder, "--config", config, "--out", tmp_path / "out", "--metric", "last", "--json")
    assert answer.exit_code == 0, answer.output
    options = json.loads(answer.stdout)["options"]
    expected = {"layers": 2, "keep": [0, 1], "candidates": [2, 3, 4], "one_shot": True, "metric": "last", "seed": 7}
    assert {name: options[name] for name in expected} == expected
    scored = invoke("score", small.folder, "--config", config)
    assert scored.exit_code == 2  # its table is none, and the rest has layers, which score has not
    assert "score() takes no option layers" in said(scored)
    for table in ("prun", "Prune"):
        config.write_text(f"layers = 2\n[{table}]\nseed = 7\n")
        assert f"prune() takes no option {table}" in said(invoke("prune", small.folder, "--config", config))
    # A table of another name is an option's value.
    config.write_text(f'samples = 4\ncalibration = {{ "{small.stream}" = 0, "{small.windows}" = 1 }}\nseqlen = 16\n')
    assert f"{small.stream}:0: a weight" in said(invoke("score", small.folder, "--config", config))
    config.write_text("layers = ")
    assert "cannot be read as TOML" in said(invoke("prune", small.folder, "--config", config))


def test_a_recorded_run_gives_the_same_bytes_again(small: Small, tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    first = invoke(
        "prune", small.folder, "--layers", 2, "--calibration", small.stream, "--samples", 3, "--seqlen", 16, "--seed",
        7, "--metric", "ppl", "--keep", "1", "--eval", small.windows, "--max-shard-size", 1, "--recipe",
        "--preset", "paper", "--out", one,
    )  # fmt: skip
    assert first.exit_code == 0, first.output
    again = invoke("prune", "--like", one / "prunecomp.json", "--out", two)
    assert again.exit_code == 0, again.output
    assert (two / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()
    records = [json.loads((out / "prunecomp.json").read_text()) for out in (one, two)]
    for same in ("model", "options", "run", "removed", "scales", "perplexity", "fold_proofs"):
        assert records[0][same] == records[1][same], same
    assert (two / "mergekit.yml").exists()
    other = invoke("prune", "--like", one / "prunecomp.json", "--layers", 1, "--out", three)
    assert other.exit_code == 0, other.output
    changed = json.loads((three / "prunecomp.json").read_text())
    assert changed["options"] == {**records[0]["options"], "layers": 1}
    refused = invoke("prune", "--like", one / "config.json", "--out", tmp_path / "four")
    assert refused.exit_code == 2
    assert "it is no record of a run; give the prunecomp.json beside an export" in said(refused)


def test_a_record_of_before_is_run_again_by_its_source(small: Small, tmp_path: Path) -> None:
    done = invoke("prune", small.folder, "--layers", 1, "--calibration", small.windows, "--out", tmp_path / "one")
    assert done.exit_code == 0, done.output
    record = tmp_path / "one" / "prunecomp.json"
    old = json.loads(record.read_text())
    del old["run"]
    record.write_text(json.dumps(old))
    again = invoke("prune", "--like", record, "--out", tmp_path / "two")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "two" / "prunecomp.json").read_text())["scales"] == old["scales"]


def test_data_that_a_record_does_not_hold_is_to_be_given(small: Small, tmp_path: Path) -> None:
    tokens = torch.from_numpy(np.load(small.windows))
    result = prunecomp.prune(small.folder, 1, tokens, eval=[tokens[:2]], preset="paper")
    record = result.save(tmp_path / "one", verify=False) / "prunecomp.json"
    refused = said(invoke("prune", "--like", record, "--out", tmp_path / "two"))
    assert "its --calibration was the array of token ids, data in memory" in refused
    given = ["--like", record, "--out", tmp_path / "two", "--calibration", small.windows]
    assert "its --eval was the list, data in memory that the record does not hold: give --eval" in said(
        invoke("prune", *given)
    )
    mixed = prunecomp.prune(
        small.folder, 1, [(small.windows, 0.5), (tokens, 0.5)], samples=4, seqlen=16, preset="paper"
    )
    mixed.save(tmp_path / "mixed", verify=False)
    refused = said(invoke("prune", "--like", tmp_path / "mixed" / "prunecomp.json", "--out", tmp_path / "two"))
    assert "data in memory" in refused
    held = json.loads(record.read_text())
    record.write_text(json.dumps({**held, "options": {**held["options"], "polish": 3}}))
    again = invoke("prune", *given, "--eval", small.windows, "--no-verify", "--no-report")
    assert again.exit_code == 0, again.output
    assert "polish of the recorded run is no option here, and is left out" in said(again)


def test_every_field_is_an_option() -> None:
    for options in (PruneOptions, CompareOptions):
        assert len(fields(options)) == len(options.options())
