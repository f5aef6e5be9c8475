"""A run that goes as far as goals and limits let it: what it stops at, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import prunecomp
from prunecomp.errors import JournalError, OptionError, TargetError
from prunecomp.options.aims import aims
from prunecomp.pruning.session import Session
from tests.command_line import invoke
from tests.models import build, draw_tokens
from tests.situations.small import Small, said, small
from tests.test_curve import timeless

__all__ = ["small"]


def sizes(model: Any) -> tuple[int, int]:
    """Parameters, and those of each of a llama's layers, which are alike."""
    return sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.model.layers[0].parameters())


@pytest.mark.parametrize(
    ("text", "value", "met", "missed"),
    [
        ("params=6.5B", 6.5e9, 6.5e9, 6.6e9),
        ("size=12GB", 12e9, 12e9, 12e9 + 1),
        ("layers=25", 25, 25, 26),
        ("perplexity=1.15x", 1.15, 1.1, 1.2),
        ("agreement=80%", 0.8, 0.8, 0.79),
        ("kl=.2", 0.2, 0.1, 0.3),
    ],
)
def test_an_aim_is_read_and_met(text: str, value: float, met: float, missed: float) -> None:
    (aim,) = aims("--target", text)
    assert aim.value == pytest.approx(value)
    assert (aim.met(met), aim.met(missed), str(aim)) == (True, False, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("speed=2x", "give params, size, layers, latency, perplexity, agreement, kl, task:NAME, as in"),
        ("perplexity=1.15", "write it as in perplexity=1.15x"),
        ("perplexity=0.9x", "write it as in perplexity=1.15x"),
        ("agreement=1.2", "write it as in agreement=0.8"),
        ("kl=0", "write it as in kl=0.2"),
        ("layers=2.5", "write it as in layers=25"),
        ("size=big", "write bytes, or a number with a unit"),
        ("kl=0.1,kl=0.2", "kl is there twice"),
    ],
)
def test_an_aim_that_is_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        aims("--target", text)


def test_goals_are_reached_by_the_fewest_layers(tmp_path: Path, generator: torch.Generator) -> None:
    """The model is the one of a run to that number; its size is that of the tensors in its file."""
    model = build("llama")
    whole, layer = sizes(model)
    tokens = draw_tokens(model, generator)
    alone = prunecomp.prune(model, 2, tokens)
    for target in (f"params={whole - 2 * layer}", f"params={whole - layer - 1}", "layers=4"):
        found = prunecomp.prune(model, target=target, calibration=tokens)
        record = timeless(found.record())
        assert record.pop("target")["gates"][-1]["missed"] == []
        assert record == {name: value for name, value in timeless(alone.record()).items() if name != "target"}
    saved = prunecomp.prune(model, target=f"size={4 * (whole - layer) - 1}", calibration=tokens)
    assert len(saved.removed) == 2
    gate = saved.target.gates[-1] if saved.target else None
    file = load_file(saved.save(tmp_path / "out") / "model.safetensors")
    assert gate is not None
    assert gate.seen["size"] == sum(tensor.nbytes for tensor in file.values())
    assert gate.seen["params"] == sum(tensor.numel() for tensor in file.values())


@pytest.mark.parametrize(
    "options", [{}, {"preset": "paper"}, {"repair": "joint"}, {"repair": "map"}, {"one_shot": True}], ids=str
)
@pytest.mark.parametrize("memory", [None, "short"])
def test_the_last_model_within_a_limit_is_taken(
    options: dict[str, Any], memory: str | None, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit lies between what runs of their own have with two layers gone and with three, repaired and judged; so
    the model of two is taken, to the bit, also where the loop has to give up its states for each look."""
    if memory == "short":
        monkeypatch.setattr("prunecomp.pruning.running.shared", lambda placement, ratio: (None, None))
    model = build("llama", num_hidden_layers=8)
    tokens, text = draw_tokens(model, generator), draw_tokens(model, generator)
    curve = prunecomp.curve(model, "1-4", tokens, eval=text, **options)
    kls = [result.quality[1].agreement.kl.value for result in curve if result.quality[1].agreement]
    assert kls[0] < kls[1] < kls[2]
    limit = f"kl={(kls[1] + kls[2]) / 2:.6f}"
    found = prunecomp.prune(model, target=limit, calibration=tokens, eval=text, **options)
    assert [gate.missed for gate in found.target.gates] == [[], [], [limit]] if found.target else False
    assert [gate.seen["kl"] for gate in found.target.gates] == kls[:3] if found.target else False
    expected, record = timeless(curve[1].record()), timeless(found.record())
    for name in ("target", "layer_forwards"):  # it has looked at the third as well
        del expected[name], record[name]
    if memory == "short":
        for one in (*expected["rounds"], *record["rounds"]):
            del one["layer_forwards"]
    assert record == expected
    third = 0 if curve[2].repair is None else curve[2].repair.layer_forwards
    assert found.layer_forwards >= curve[1].layer_forwards + third


def test_a_target_that_cannot_be_met_says_how_far_it_came(generator: torch.Generator) -> None:
    model = build("llama", num_hidden_layers=8)
    tokens, text = draw_tokens(model, generator), draw_tokens(model, generator)
    curve = prunecomp.curve(model, "1-3", tokens, eval=text, repair="none")
    kls = [result.quality[1].agreement.kl.value for result in curve if result.quality[1].agreement]
    limit = f"kl={(kls[1] + kls[2]) / 2:.6f}"
    with pytest.raises(TargetError, match=r"no further than 2 of 8 layers gone, with layers is 6 \(wanted 4\)") as met:
        prunecomp.prune(model, target=f"layers=4,{limit}", calibration=tokens, eval=text, repair="none")
    assert f"with 3 gone kl is {kls[2]:,.4g}" in str(met.value)
    assert "--layers 2 gives that model" in str(met.value)
    with pytest.raises(TargetError, match="no layer can go: with one of 8 gone kl is"):
        prunecomp.prune(model, target="kl=0.000001", calibration=tokens, eval=text, repair="none")


def test_what_cannot_be_is_refused_before_any_work(generator: torch.Generator) -> None:
    model = build("llama")
    whole, layer = sizes(model)
    tokens, text = draw_tokens(model, generator), draw_tokens(model, generator)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"target": f"params={whole}"}, f"the model has {whole:,} as it is"),
        ({"target": f"params={whole - 6 * layer}"}, "with all 5 layers gone that may go"),
        ({"target": "layers=3", "keep": "0-3"}, "with all 1 layers gone that may go 5 are left"),
        ({"target": "kl=0.1"}, "is measured on a text: give one by --eval"),
        ({"target": "kl=0.1", "eval": tokens}, "--eval is what is calibrated on"),
        ({"target": "kl=0.1", "eval": text, "layers": 2}, "--layers 2 and --target kl=0.1 each say"),
        ({"target": "layers=3", "metric": "span"}, "--target: --metric span removes all layers in one block"),
    ]
    for options, words in refused:
        with pytest.raises(OptionError, match=words):
            prunecomp.prune(model, calibration=tokens, **options)


def test_memory_that_holds_no_dense_states_is_told_before_any_work(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is memory for the run, and for perplexity, but not for comparing: neither loads anything before that is
    known, and the plan says so too."""
    model = build("llama")
    model.save_pretrained(tmp_path / "base")
    calibration, text = draw_tokens(model, generator), draw_tokens(model, generator)

    def begun(*_: Any, **__: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(Session, "load", begun)
    options: dict[str, Any] = {"calibration": calibration, "eval": text, "preset": "paper", "dtype": "float32"}
    limits, found = range(20_000, 400_000, 4 * text.numel() * 32), list[tuple[str, ...]]()  # steps of less than a state
    for limit in limits:
        said = []
        for target in ("kl=0.1", "agreement=0.9", "perplexity=2x"):
            try:
                prunecomp.prune(tmp_path / "base", target=target, device_memory=limit, **options)
            except OptionError as error:
                short = f"--target {target}: memory has no room for the dense model's last states" in str(error)
                said.append("short" if short else "less")
            except InterruptedError:
                said.append("begun")
        found.append(tuple(said))
    assert list(dict.fromkeys(found)) == [("less",) * 3, ("short", "short", "begun"), ("begun",) * 3]
    limit = limits[found.index(("short", "short", "begun"))]
    with pytest.raises(OptionError, match="no room for the dense model's last states"):
        prunecomp.plan(
            tmp_path / "base", target="kl=0.1", device_memory=limit, repair="none", dtype="float32",
            samples=calibration.shape[0], seqlen=calibration.shape[1],
        )  # fmt: skip


def test_a_judged_repair_is_counted_apart_from_its_fit(generator: torch.Generator) -> None:
    """All layer-forwards, as the runs themselves count them, are of one or the other; on the way to a target those of
    every round are there."""
    model = build("llama")
    tokens, text = draw_tokens(model, generator), draw_tokens(model, generator)
    for repair, names in (("joint", {"scoring", "repairing"}), ("auto", {"scoring", "judging"})):
        found = prunecomp.prune(model, 1, tokens, repair=repair)
        passes = found.record()["cost"]["passes"]
        assert names <= set(passes) <= {*names, "repairing"}
        assert sum(one["layer_forwards"] for one in passes.values()) == pytest.approx(found.layer_forwards)
    judged = passes["judging"]["layer_forwards"]
    assert 0 < passes["judging"]["seconds"] <= found.seconds
    curve = prunecomp.curve(model, "1-2", tokens, eval=text)
    every = [one.repair.judged_layer_forwards for one in curve if one.repair is not None]
    found = prunecomp.prune(model, target="layers=4,kl=100", calibration=tokens, eval=text)
    assert found.record()["cost"]["passes"]["judging"]["layer_forwards"] == pytest.approx(sum(every))
    assert every[0] == pytest.approx(judged)


def test_a_killed_run_asks_its_gates_again(generator: torch.Generator, tmp_path: Path) -> None:
    """Rounds come from the journal, gates do not: the same model, and the same gates; another target may go on too."""
    model, file = build("llama", num_hidden_layers=8), tmp_path / "journal.json"
    tokens, text = draw_tokens(model, generator), draw_tokens(model, generator)
    options: dict[str, Any] = {"calibration": tokens, "eval": text, "preset": "paper"}
    whole = prunecomp.prune(model, target="kl=0.5", **options)
    with pytest.raises(TargetError):
        prunecomp.prune(model, target="kl=0.000001", journal=file, **options)
    with pytest.raises(JournalError, match="go on with it by --resume"):
        prunecomp.prune(model, target="kl=0.5", journal=file, **options)
    again = prunecomp.prune(model, target="kl=0.5", journal=file, resume=True, **options)
    assert again.target == whole.target
    assert again.stack == whole.stack
    file.unlink()
    with pytest.raises(TargetError):
        prunecomp.prune(model, target="layers=3,kl=0.000001", journal=file, **options)
    further = prunecomp.prune(model, target="layers=6", journal=file, resume=True, **options)
    assert len(further.removed) == 2


def test_the_command_shows_records_and_plans_it(small: Small, tmp_path: Path) -> None:
    words = [small.folder, "--target", "layers=4"]
    planned = invoke("plan", *words, "--json")
    assert (json.loads(planned.stdout)["layers"], json.loads(planned.stdout)["target"]) == (2, ["layers=4"])
    assert "Target: layers=4" in said(invoke("plan", *words))
    out = tmp_path / "out"
    done = invoke("prune", *words, "--calibration", small.windows, "--repair", "none", "--out", out)
    assert (done.exit_code, "target: layers=4" in said(done)) == (0, True)
    record = json.loads((out / "prunecomp.json").read_text())
    assert [gate["layers"] for gate in record["target"]["gates"]] == [1, 2]
    again = invoke("prune", "--like", out / "prunecomp.json", "--out", tmp_path / "again")
    assert again.exit_code == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    other = tmp_path / "other.npy"
    other.write_bytes(small.stream.read_bytes())
    missed = invoke(
        "prune", small.folder, "--target", "kl=0.000001", "--calibration", small.windows, "--eval", other, "--seqlen",
        "16", "--out", tmp_path / "missed",
    )  # fmt: skip
    assert (missed.exit_code, "no layer can go" in said(missed)) == (10, True)
    assert not (tmp_path / "missed").exists()
