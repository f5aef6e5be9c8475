"""The command line end to end on the bundled model, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunecomp.io.values import layer_set
from tests.command_line import invoke as run

SMALL = ["--samples", "4", "--seqlen", "64"]


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = run(*arguments)
    return result.exit_code, result.stdout, result.stderr


def test_prune_writes_the_record_that_it_prints(reference_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    short = tmp_path / "short.txt"
    short.write_text((reference_model / "evaluation.txt").read_text()[:4000])
    code, stdout, stderr = invoke(
        "prune", reference_model, "--layers", 3, "--calibration", reference_model / "calibration.txt",
        "--eval", short, "--out", out, "--json", *SMALL,
    )  # fmt: skip
    assert code == 0, stderr
    printed = json.loads(stdout)
    written = json.loads((out / "prunecomp.json").read_text())
    proofs = written.pop("fold_proofs")
    assert written == printed
    assert len(proofs) > 0
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 13
    # The exported checkpoint, measured on its own, gives the perplexity of the seam model to bfloat16 rounding.
    code, stdout, _ = invoke("eval", out, "--eval", short, "--seqlen", 64, "--json")
    assert json.loads(stdout)["perplexity"] == pytest.approx(printed["perplexity"]["pruned"], rel=2**-7)


def test_tables_are_printed_without_json_however_long_the_path(reference_model: Path, tmp_path: Path) -> None:
    model = tmp_path / ("a-long-name" * 12)
    model.symlink_to(reference_model)
    code, stdout, _ = invoke(
        "prune", model, "--layers", 2, "--calibration", reference_model / "calibration.txt",
        "--out", tmp_path / "out", *SMALL,
    )  # fmt: skip
    assert code == 0
    assert "2 of 16 layers removed" in stdout
    assert "layer-forwards" in stdout


def test_score_ranks_every_layer(reference_model: Path) -> None:
    code, stdout, _ = invoke(
        "score", reference_model, "--calibration", reference_model / "calibration.txt", "--json", *SMALL
    )
    assert code == 0
    assert len(json.loads(stdout)["scores"]) == 16


def test_info_says_what_the_adapter_sees(reference_model: Path) -> None:
    code, stdout, _ = invoke("info", reference_model, "--json")
    seen = json.loads(stdout)
    assert code == 0
    assert seen["layers"] == 16
    assert seen["tied_head"] is False
    assert seen["writers"] == ["self_attn.o_proj.weight", "mlp.down_proj.weight"]


@pytest.mark.parametrize("command", ["prune", "score", "eval", "info"])
def test_help_shows_an_example_and_the_exit_codes(command: str) -> None:
    code, stdout, _ = invoke(command, "--help")
    assert code == 0
    assert f"Example: prunecomp {command}" in " ".join(stdout.split())
    assert "Exit codes" in stdout


def test_exit_codes_tell_the_kind_of_error(reference_model: Path, tmp_path: Path) -> None:
    text = reference_model / "calibration.txt"
    prune = ["prune", reference_model, "--out", tmp_path / "out", *SMALL]
    tiny = tmp_path / "tiny.txt"
    tiny.write_text("too short")
    cases = [
        (2, [*prune, "--layers", 16, "--calibration", text], "at most 15"),
        (2, [*prune, "--layers", 2, "--calibration", text, "--metric", "magic"], "--metric magic"),
        (2, [*prune, "--layers", 2, "--calibration", text, "--keep", "x"], "--keep x"),
        (3, ["info", tmp_path], "config.json"),
        (4, [*prune, "--layers", 2, "--calibration", tiny], "too short for one window"),
        (7, ["prune", reference_model, "--out", reference_model, "--layers", 2, "--calibration", text], "exists"),
    ]
    for expected, arguments, message in cases:
        code, _, stderr = invoke(*arguments)
        assert code == expected, (arguments, stderr)
        assert message in stderr
    assert not (tmp_path / "out").exists()


def test_layer_lists_are_numbers_and_ranges() -> None:
    assert layer_set("--keep", "0-3,7") == [0, 1, 2, 3, 7]
    assert layer_set("--keep", [7, 0]) == [0, 7]
