"""A run that is killed, interrupted or refused goes on from its journal to the same bytes."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunecomp
from prunecomp.errors import JournalError
from prunecomp.pruning.journal import Journal, journal_path
from prunecomp.pruning.result import RoundRecord
from tests.forks import Ended, Forks
from tests.killing import Harm
from tests.models import build, draw_tokens
from tests.seeds import seed

WAYS: dict[str, list[str]] = {
    "resident": [],
    "one-shot": ["--one-shot"],
    "streamed": ["--device-memory", "2.4MB"],
}
KILLS = 30
"""At random moments, beside those at chosen points."""

CHOSEN = (
    Harm("layer", 1), Harm("layer", 12), Harm("journal", 1), Harm("journal", 3), Harm("journal", 3, after=True),
    Harm("journal-replaced", 2), Harm("perplexity"), Harm("perplexity", after=True), Harm("shard", 1),
    Harm("shard", 2, after=True), Harm("rename"), Harm("rename", after=True), Harm("journal-removed"),
)  # fmt: skip


def contents(out: Path) -> dict[str, Any]:
    """Every file; of the record what does not depend on how often the run was stopped, of the card not the folder."""
    files: dict[str, Any] = {path.name: path.read_bytes() for path in out.iterdir()}
    assert f"--out {out}".encode() in files["README.md"]
    files["README.md"] = files["README.md"].replace(bytes(out), b"OUT")
    record = json.loads(files["prunecomp.json"])
    for part in (record, *record["rounds"]):
        del part["seconds"], part["layer_forwards"]
    del record["cost"], record["command"]
    return {**files, "prunecomp.json": record}


def finished(out: Path) -> bool:
    return out.exists() and not journal_path(out).exists()


@dataclass
class Bench:
    """A model on disk, the plain outcome of each way to run it, and all kills so far."""

    folder: Path
    forks: Forks
    expected: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    killed: list[str] = field(default_factory=list)

    def run(self, way: str, out: Path, *more: object, **harm: Any) -> Ended:
        ended = self.forks.run(
            "prune", self.folder / "base", "--layers", 5, "--preset", "paper", "--keep", "7-9", "--no-report",
            "--calibration", self.folder / "tokens.npy",
            "--eval", self.folder / "tokens.npy", "--max-shard-size", "0.001", "--out", out, *WAYS[way], *more, **harm,
        )  # fmt: skip
        if ended.code == -signal.SIGKILL and ended.phase != "done":
            self.killed.append(ended.phase)
        return ended

    def holds(self, way: str, out: Path) -> None:
        """The checkpoint is the one of an undisturbed run, and lies there alone."""
        assert contents(out) == self.expected[way]
        assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("resume")
    torch.manual_seed(seed())
    build("llama", num_hidden_layers=10, hidden_size=64, intermediate_size=192).save_pretrained(folder / "base")
    np.save(folder / "tokens.npy", np.random.default_rng(seed()).integers(0, 101, (6, 64)))
    (folder / "forks").mkdir()
    bench = Bench(folder, Forks(folder / "forks"))
    for way in WAYS:
        ended = bench.run(way, folder / way)
        assert ended.code == 0, ended.stderr
        bench.expected[way] = contents(folder / way)
        bench.seconds = max(bench.seconds, ended.seconds)
    assert bench.expected["streamed"]["prunecomp.json"]["streamed"]
    assert not bench.expected["resident"]["prunecomp.json"]["streamed"]
    assert "model-00002-of-00002.safetensors" in bench.expected["resident"]
    yield bench
    bench.forks.close()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_runs_killed_at_random_moments_end_in_the_same_bytes(bench: Bench, tmp_path: Path, way: str) -> None:
    moments = random.Random(f"{seed()} {way}")
    hits = runs = 0
    while hits < KILLS // len(WAYS):
        out = tmp_path / f"{runs}" / "out"
        runs += 1
        for _ in range(moments.randint(1, 4)):
            ended = bench.run(way, out, "--resume", delay=moments.uniform(0.05, 0.9) * bench.seconds)
            if finished(out):
                break  # by itself, or killed with nothing left to do
            assert ended.code == -signal.SIGKILL, ended.stderr
            hits += 1
        else:
            ended = bench.run(way, out, "--resume")
        assert finished(out), ended.stderr
        bench.holds(way, out)


@pytest.mark.parametrize("harm", CHOSEN, ids=str)
def test_a_kill_at_any_step_is_made_good_by_resuming(bench: Bench, tmp_path: Path, harm: Harm) -> None:
    way = random.Random(f"{seed()} {harm}").choice(sorted(WAYS))
    out = tmp_path / "here" / "out"
    assert bench.run(way, out, harm=harm).code == -signal.SIGKILL
    ended = bench.run(way, out, "--resume")
    assert ended.code == 0, (way, ended.stderr)
    bench.holds(way, out)


@pytest.mark.slow
def test_the_kills_hit_every_phase(bench: Bench) -> None:
    if len(bench.killed) < KILLS:
        pytest.skip("counts the kills of the whole file")
    hits = Counter(bench.killed)
    assert min(hits[phase] for phase in ("scoring", "between rounds", "export")) >= 3, hits


def test_a_journal_takes_over_every_round_that_was_made(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bench.run("resident", out, harm=Harm("journal", 3, after=True))
    held = json.loads(journal_path(out).read_text())["run"]["rounds"]
    ended = bench.run("resident", out, "--resume", "--json")
    rounds = json.loads(ended.stdout)["rounds"]
    assert len(held) == 3
    assert rounds[:3] == held  # the seconds too


@pytest.mark.parametrize("harm", [Harm("layer", 15), Harm("perplexity"), Harm("shard", 2)], ids=str)
def test_an_interrupt_says_how_to_go_on(bench: Bench, tmp_path: Path, harm: Harm) -> None:
    out = tmp_path / "here" / "out"
    ended = bench.run("resident", out, harm=Harm(harm.point, harm.count, deed="interrupt"))
    assert ended.code == 130
    assert "no checkpoint was written" in ended.stderr
    assert "--resume" in ended.stderr
    assert [path.name for path in out.parent.iterdir()] == [journal_path(out).name]
    assert bench.run("resident", out, "--resume").code == 0
    bench.holds("resident", out)


def test_a_journal_is_not_gone_on_with_unasked(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "here" / "out"
    bench.run("resident", out, harm=Harm("perplexity"))
    before = journal_path(out).read_bytes()
    ended = bench.run("resident", out)
    assert ended.code == 9
    assert "go on with it by --resume, or remove it" in ended.stderr
    assert journal_path(out).read_bytes() == before
    assert not out.exists()


def test_resuming_without_a_journal_starts(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "here" / "out"
    assert bench.run("resident", out, "--resume").code == 0
    bench.holds("resident", out)


def test_a_run_that_was_whole_when_it_was_killed_tells_its_result(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "here" / "out"
    bench.run("resident", out, harm=Harm("journal-removed"))
    ended = bench.run("resident", out, "--resume", "--json")
    assert json.loads(ended.stdout)["removed"] == bench.expected["resident"]["prunecomp.json"]["removed"]
    bench.holds("resident", out)


@dataclass
class Case:
    """A run in this process, and its whole journal: nothing was saved that would end it."""

    model: Any
    tokens: torch.Tensor
    journal: Path

    def run(self, **changes: Any) -> prunecomp.PruneResult:
        arguments = {"model": self.model, "layers": 2, "calibration": self.tokens, "journal": self.journal}
        return prunecomp.prune(**{**arguments, **changes}, preset="paper")


@pytest.fixture
def case(tmp_path: Path, generator: torch.Generator) -> Case:
    torch.manual_seed(seed())
    model = build("llama")
    case = Case(model, draw_tokens(model, generator), tmp_path / "journal.json")
    case.run()
    return case


@pytest.mark.parametrize("one_shot", [False, True], ids=["iterative", "one-shot"])
def test_a_whole_journal_is_gone_on_with_without_running_a_layer(case: Case, one_shot: bool) -> None:
    case.journal.unlink()
    first = case.run(one_shot=one_shot)
    again = case.run(one_shot=one_shot, resume=True)
    assert again.rounds == first.rounds
    assert again.stack == first.stack
    assert again.layer_forwards == 0


DIFFERENCES: dict[str, tuple[Callable[[Case], dict[str, Any]], str]] = {
    "model": (lambda case: {"model": build("llama")}, r"model was \"\w+\" and is"),
    "data": (lambda case: {"calibration": (case.tokens + 1) % 101}, r"calibration was \"\w+\" and is"),
    "layers": (lambda case: {"layers": 3}, r"options\.layers was 2 and is 3"),
    "keep": (lambda case: {"keep": [5]}, r"options\.keep was \[\] and is \[5\]"),
    "candidates": (lambda case: {"candidates": [1, 2, 3]}, r"options\.candidates was null and is \[1, 2, 3\]"),
    "one-shot": (lambda case: {"one_shot": True}, r"options\.one_shot was false and is true"),
    "compensation": (lambda case: {"compensation": "none"}, r"options\.compensation was \"scale\" and is \"none\""),
    "seed": (lambda case: {"seed": 1}, r"options\.seed was 0 and is 1"),
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_the_journal_of_another_run_is_refused_by_name(case: Case, what: str) -> None:
    change, message = DIFFERENCES[what]
    before = case.journal.read_bytes()
    with pytest.raises(JournalError, match=message) as refused:
        case.run(**change(case), resume=True)
    assert str(refused.value).count(" was ") == 1
    assert case.journal.read_bytes() == before


def test_the_form_of_the_fold_may_change_on_the_way(case: Case) -> None:
    assert case.run(fold="down", resume=True).removed == case.run(resume=True).removed


def test_a_journal_in_which_nothing_is_decided_is_no_obstacle(case: Case) -> None:
    case.journal.unlink()
    Journal.open(case.journal, {"another": "run"}, resume=False)
    assert len(case.run().rounds) == 2


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("text", ["", "[]", "{}", '"x"', "null", '{"format": 1, "sha256": "", "run": {}}', "\udc80"])
def test_a_file_that_is_no_journal_is_refused_and_left(case: Case, text: str, resume: bool) -> None:
    case.journal.write_text(text, errors="surrogateescape")
    before = case.journal.read_bytes()
    with pytest.raises(JournalError, match=r"cannot be read as a journal .* remove it to start again"):
        case.run(resume=resume)
    assert case.journal.read_bytes() == before


finite = st.floats(allow_nan=False)
records = st.builds(
    RoundRecord, layer=st.integers(0, 200), score=finite, scale=finite,
    scores=st.dictionaries(st.integers(0, 200), finite), layer_forwards=st.integers(0), zero_rows=st.integers(0),
    dead_channels=st.integers(0), seconds=finite, block=st.lists(st.integers(0, 200), min_size=1, max_size=3),
    sequences=st.integers(1), chosen=st.none() | st.text(), losses=st.dictionaries(st.text(), finite),
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(rounds=st.lists(records, min_size=1, max_size=4))
def test_rounds_survive_the_journal_to_the_bit(tmp_path_factory: pytest.TempPathFactory, rounds: list[Any]) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.json"
    journal = Journal.open(path, {"of": [1, None, 0.1]}, resume=False)
    for made in rounds:
        journal.append(made)
    held = Journal.open(path, {"of": [1, None, 0.1]}, resume=True).rounds
    assert held == rounds
    for ours, theirs in zip(held, rounds, strict=True):  # -0.0 == 0.0: the sign is told apart in hexadecimal
        assert [ours.score.hex(), ours.scale.hex()] == [theirs.score.hex(), theirs.scale.hex()]
        assert {k: v.hex() for k, v in ours.scores.items()} == {k: v.hex() for k, v in theirs.scores.items()}


@settings(max_examples=50, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_journal_is_never_believed(
    tmp_path_factory: pytest.TempPathFactory, where: float, bit: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.json"
    made = RoundRecord(3, 0.1, 1.25, {3: 0.1, 4: 5e-324}, 7, 0, 0, 0.5, [3], 8)
    Journal.open(path, {"of": "a run"}, resume=False).append(made)
    data = bytearray(path.read_bytes())
    at = int(where * len(data))
    if cut:
        del data[at:]
    else:
        data[at] ^= 1 << bit
    path.write_bytes(data)
    try:
        held = Journal.open(path, {"of": "a run"}, resume=True)
    except JournalError:
        return
    assert held.rounds == [made]  # the damage fell on white space
