"""Targets that are measured by probes and by a clock: what they stop at, what is recorded, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunecomp
from prunecomp.cli.commands import recorded
from prunecomp.engine.latency import Latency, measure_latency, share
from prunecomp.errors import JournalError, OptionError, TargetError
from prunecomp.evaluation import items
from prunecomp.evaluation import profile as evaluated
from prunecomp.evaluation.items import Item
from prunecomp.evaluation.probes import Answers, together
from prunecomp.model.decoder import Decoder
from prunecomp.options.aims import aims
from prunecomp.pruning import abilities, running
from tests.docs.test_formats import JOURNAL, RECORD, check
from tests.models import build, draw_tokens

OPTIONS: dict[str, Any] = {"samples": 4, "seqlen": 64, "dtype": "float32", "preset": "paper", "items": 10}


@pytest.fixture(scope="module")
def learnt() -> list[Item]:
    """Problems that the reference model solves, and models made of it less and less: what it writes itself after words
    of its evaluation text, as transformers has it."""
    folder = Path(__file__).parent.parent / "examples" / "reference_model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).float(), AutoTokenizer.from_pretrained(folder)
    words = (folder / "evaluation.txt").read_text(encoding="utf-8").split()
    found: dict[str, Item] = {}
    for start in range(0, 2000, 20):
        question = " ".join(words[start : start + 12])
        ids = tokenizer(question, return_tensors="pt")["input_ids"]
        made = model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
        answer = tokenizer.decode(made).partition("\n")[0]
        if answer.split() and tokenizer(question + answer)["input_ids"][: ids.shape[1]] == ids[0].tolist():
            found.setdefault(question, Item(question, answer, (" x", " y", " z")))
        if len(found) == 10:
            break
    return list(found.values())


@pytest.fixture
def taught(learnt: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the probe ``copy``, with no solved examples before them."""
    monkeypatch.setattr(items, "EXAMPLES", 0)
    monkeypatch.setitem(items.MAKERS, "copy", (lambda random: random.choice(learnt), begins))
    for module in (evaluated, abilities):  # two of them are enough
        monkeypatch.setattr(module, "MAKERS", {name: items.MAKERS[name] for name in ("copy", "reverse")})
    monkeypatch.setattr(evaluated, "PROMPTS", evaluated.PROMPTS[:1])


def begins(item: Item, line: str) -> bool:
    """More tokens are written than the answer has."""
    return line.split()[: len(item.answer.split())] == item.answer.split()


def test_the_last_model_that_keeps_to_a_probe_is_written(taught: None, reference_model: Path, tmp_path: Path) -> None:
    """As the profile of the exports finds it, which reads them from disk."""
    text = str(reference_model / "calibration.txt")
    found = prunecomp.prune(reference_model, target="task:copy=-75%", calibration=text, **OPTIONS)
    assert found.target is not None
    gone = len(found.removed)
    assert [gate.layers for gate in found.target.gates] == list(range(1, gone + 2))
    assert [gate.missed for gate in found.target.gates] == [[]] * gone + [["task:copy=-75%"]]
    beyond = prunecomp.prune(reference_model, gone + 1, text, **{**OPTIONS, "items": 50})
    scores = []
    for number, result in enumerate((found, beyond)):
        folder = result.save(tmp_path / str(number), verify=False)
        profile = prunecomp.profile(folder, base=reference_model, items=10, dtype="float32")
        (dense,), (pruned,) = (
            [p for p in m.probes if (p.probe, p.way) == ("copy", "production")] for m in profile.models
        )
        assert found.target.dense == {"task:copy": dense.score}
        scores.append(pruned.score / dense.score - 1)
    assert scores == pytest.approx([gate.seen["task:copy"] for gate in found.target.gates[-2:]])
    assert scores[0] >= -0.75 > scores[1]
    record = json.loads((tmp_path / "0" / "prunecomp.json").read_text(encoding="utf-8"))
    check(RECORD, record)
    assert record["run"]["items"] == 10
    assert "items" not in recorded(tmp_path / "0" / "prunecomp.json")  # of a run like it, to so many layers
    assert record["cost"]["seconds"]["gates"] > 0
    assert (
        record["cost"]["passes"]["scoring"]["layer_forwards"] == sum(r.layer_forwards for r in found.rounds) or gone > 1
    )
    assert found.removed == beyond.removed[:gone]


def test_a_killed_run_asks_its_probes_again(taught: None, reference_model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**OPTIONS, "calibration": str(reference_model / "calibration.txt")}
    whole = prunecomp.prune(reference_model, target="task:copy=-75%", **options)
    file = tmp_path / "journal.json"
    with pytest.raises(TargetError, match=r"no layer can go: with one of|comes no further"):
        prunecomp.prune(reference_model, target="layers=1,task:copy=-75%", journal=file, **options)
    again = prunecomp.prune(reference_model, target="task:copy=-75%", journal=file, resume=True, **options)
    assert (again.target, again.stack) == (whole.target, whole.stack)


def test_a_probe_at_chance_is_refused_with_those_that_are_not(taught: None, reference_model: Path) -> None:
    asked: dict[str, Any] = {"calibration": str(reference_model / "calibration.txt"), **OPTIONS}
    with pytest.raises(
        TargetError, match=r"task:reverse=-5%: of 10 problems \(production\) .* guess .*; name task:copy"
    ):
        prunecomp.prune(reference_model, target="task:reverse=-5%", **asked)
    with pytest.raises(OptionError, match="--target task:copy=-5%: the model is streamed"):
        prunecomp.prune(reference_model, target="task:copy=-5%", device_memory=20_000_000, **asked)
    model = build("llama")
    with pytest.raises(OptionError, match="--target task:copy=-5%: the model has no tokenizer"):
        prunecomp.prune(model, target="task:copy=-5%", calibration=draw_tokens(model, torch.Generator()))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task:copi=-5%", "no probe has that name; task:NAME is one of copy"),
        ("task=-5%", "give params"),
        ("kl:copy=0.1", "give params"),
        ("task:copy=5%", "write it as in task:copy=-5%"),
        ("task:copy=-100%", "write it as in task:copy=-5%"),
        ("task:copy:guess=-5%", "or task:copy:recognition"),
        ("task:copy=-5%,task:copy:production=-6%", "task:copy is there twice"),
        ("latency=1x", "write it as in latency=0.8x"),
        ("latency=0.8", "write it as in latency=0.8x"),
    ],
)
def test_what_is_no_such_aim_is_refused(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        aims("--target", text)


def test_aims_of_probes_are_read() -> None:
    first, second, third = aims("--target", ["task:Add 2 digits=-5%", "task:arithmetic:recognition=-0%", "latency=.5x"])
    assert (str(first), first.probes, first.way) == ("task:add-2-digits=-5%", ("add 2 digits",), "production")
    assert (second.way, len(second.probes)) == ("recognition", 3)
    assert (first.met(-0.05), first.met(-0.051), second.met(0.0), second.met(-0.01)) == (True, False, True, False)
    assert (first.met(0.95 / 1.0 - 1), third.met(0.5), third.met(0.51)) == (True, True, False)


def test_probes_together_have_all_problems_and_the_mean_guess() -> None:
    one, two = Answers("a", "production", (True, False), 0.5), Answers("b", "production", (True,) * 6, 0.1)
    both = together("c", [one, two])
    assert (both.probe, both.hits, both.guess) == ("c", (True, False, *[True] * 6), pytest.approx(0.2))


def test_a_latency_is_a_share_of_layers_that_are_alike(generator: torch.Generator, tmp_path: Path) -> None:
    """Of six: 0.67x is four. The journal has what was measured, and going on measures nothing."""
    model, file = build("llama"), tmp_path / "journal.json"
    tokens = draw_tokens(model, generator)
    found = prunecomp.prune(model, target="latency=0.67x", calibration=tokens, preset="paper", journal=file)
    assert found.target is not None
    assert (len(found.removed), found.target.gates[-1].seen["latency"]) == (2, pytest.approx(4 / 6))
    assert found.stages["measuring latency"] > 0
    assert sum(found.stages.values()) <= found.seconds
    check(JOURNAL, kept := json.loads(file.read_text(encoding="utf-8")))
    check(RECORD, json.loads((found.save(tmp_path / "out") / "prunecomp.json").read_text(encoding="utf-8")))
    assert kept["run"]["latency"]["prefill"] == found.target.latency.prefill if found.target.latency else False
    with pytest.raises(OptionError, match=r"with all 5 layers gone that may go 0\.1667 are left"):
        prunecomp.prune(model, target="latency=0.1x", calibration=tokens)


def test_a_resumed_run_holds_to_what_was_measured(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers of two kinds: how many go depends on the clock."""
    model, file = build("llama"), tmp_path / "journal.json"
    tokens = draw_tokens(model, generator)
    options: dict[str, Any] = {"calibration": tokens, "metric": "last", "repair": "none", "journal": file}
    slow = Latency([1.0, 1.0, 1.0, 1.0, 1.0, 5.0], [1.0] * 6, 16)
    monkeypatch.setattr(running, "measure_latency", lambda *_: slow)
    first = prunecomp.prune(model, target="latency=0.84x", **options)
    assert first.target is not None
    assert [gate.seen["latency"] for gate in first.target.gates] == [round(5 / 6, 9)]
    monkeypatch.setattr(running, "measure_latency", lambda *_: pytest.fail("measured again"))
    with pytest.raises(JournalError, match="go on with it by --resume"):
        prunecomp.prune(model, target="latency=0.84x", **options)
    again = prunecomp.prune(model, target="latency=0.84x", resume=True, **options)
    assert again.target == first.target
    further = prunecomp.prune(model, target="latency=0.5x", resume=True, **options)
    assert further.target is not None
    assert (further.target.latency, len(further.removed)) == (slow, 3)


def test_what_is_measured_is_every_layer_and_nothing_is_left_in_place(generator: torch.Generator) -> None:
    model = build("mistral")
    decoder, tokens = Decoder(model), draw_tokens(model, generator)
    before = model(tokens).logits
    found = measure_latency(decoder, tokens[0])
    assert (len(found.prefill), len(found.decode), found.tokens) == (6, 6, 16)
    assert min(found.prefill + found.decode) > 0
    assert found.ratio(range(3)) == 0.5
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in decoder.layers)
    assert torch.equal(model(tokens).logits, before)
    assert share([2.0, 1.0, 1.0], [1, 2]) == 0.5
    assert replace(found, decode=[3.0, 1, 1, 1, 1, 1]).ratio([0, 1]) == 0.5


def test_every_layer_that_may_go_can_be_what_is_needed(generator: torch.Generator) -> None:
    """Six of thirty that are alike leave 0.8 of the time, and neither rounding says otherwise."""
    alike = Latency([0.1 + 0.2] * 30, [0.7] * 30, 16)
    assert alike.ratio(range(24)) == 0.8
    assert aims("--target", "latency=0.8x")[0].met(1 - sum(1 - share(alike.prefill, range(29)) for _ in range(6)))
    model = build("llama")
    found = prunecomp.prune(
        model, target="latency=0.5x", calibration=draw_tokens(model, generator), candidates="1-3", repair="none"
    )
    assert sorted(found.removed) == [1, 2, 3]


@pytest.mark.parametrize(("hits", "of", "guess"), [(530, 1100, 0.25), (9_000, 10_000, 0.01), (0, 10_000, 0.0)])
def test_chance_is_told_of_many_problems(hits: int, of: int, guess: float) -> None:
    """More than floats have room for, counted as ways to choose them: told by the normal law, far from its edge."""
    answers = Answers("a", "production", (True,) * hits + (False,) * (of - hits), guess)
    assert answers.beyond_chance == (hits > of * guess + 5 * (of * guess * (1 - guess)) ** 0.5)
    few = [Answers("a", "production", (True,) * k + (False,) * (12 - k), 0.25).beyond_chance for k in range(13)]
    exact = [sum(comb(12, j) * 0.25**j * 0.75 ** (12 - j) for j in range(k, 13)) < 0.05 for k in range(13)]
    assert few == exact


def test_what_was_measured_is_on_disk_at_once_beside_rounds(generator: torch.Generator, tmp_path: Path) -> None:
    model, file = build("llama"), tmp_path / "journal.json"
    options: dict[str, Any] = {"calibration": draw_tokens(model, generator), "repair": "none", "journal": file}
    prunecomp.prune(model, target="layers=4", **options)
    found = prunecomp.prune(model, target="latency=0.67x", resume=True, **options)
    assert found.target is not None
    assert found.target.latency is not None
    assert json.loads(file.read_text(encoding="utf-8"))["run"]["latency"]["decode"] == found.target.latency.decode
