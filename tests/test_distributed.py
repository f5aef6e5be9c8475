"""Several processes give what one gives, and end together when one of them is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunecomp.engine.parallel import Workers
from prunecomp.errors import DistributedError
from prunecomp.pruning.journal import journal_path
from tests.engine.test_streaming import needed
from tests.forks import ROOT, Forks, free_port
from tests.killing import Harm
from tests.models import build
from tests.seeds import seed

SECONDS_TO_END = 600
"""A job that has lost a process ends within this on the busiest machine; the collectives' own limit is half an hour."""


@dataclass
class Bench:
    """A model on disk, windows of two to a micro-batch, and what one process makes of them."""

    folder: Path
    forks: Forks
    record: dict[str, Any]
    limit: int
    """Bytes that hold two layers at a time, and no states."""

    def command(self, out: Path, *more: object) -> list[object]:
        return [
            "prune", self.folder / "base", "--layers", 4, "--preset", "paper", "--keep", 7,
            "--calibration", self.folder / "tokens.npy",
            "--eval", self.folder / "held_out.npy", "--out", out, *more,
        ]  # fmt: skip

    def equals_one_process(self, out: Path, rtol: float = 1e-12) -> None:
        """Choices and model bytes are the same, numbers to ``rtol``; the first process alone has left something."""
        record = json.loads((out / "prunecomp.json").read_text())
        assert record["removed"] == self.record["removed"]
        np.testing.assert_allclose(record["scales"], self.record["scales"], rtol=rtol)
        for ours, theirs in zip(record["rounds"], self.record["rounds"], strict=True):
            assert ours["scores"].keys() == theirs["scores"].keys()
            np.testing.assert_allclose([*ours["scores"].values()], [*theirs["scores"].values()], rtol=rtol)
        dense, pruned = (record["perplexity"][model] for model in ("dense", "pruned"))
        assert dense == pytest.approx(self.record["perplexity"]["dense"], rel=rtol)
        # One process measures the export, several the model with its seams: what a fold rounds lies between.
        assert pruned == pytest.approx(self.record["perplexity"]["pruned"], rel=max(rtol, 1e-5))
        if rtol <= 1e-12:
            for file in ("model.safetensors", "config.json"):
                assert (out / file).read_bytes() == (self.folder / "one" / file).read_bytes()
        assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("distributed")
    torch.manual_seed(seed())
    model = build("llama", num_hidden_layers=8, max_position_embeddings=2048)
    model.save_pretrained(folder / "base")
    random = np.random.default_rng(seed())
    for name, count in (("tokens", 7), ("held_out", 5)):  # micro-batches of two: the last is not full
        np.save(folder / f"{name}.npy", random.integers(0, 101, (count, 1400)))
    np.save(folder / "many.npy", random.integers(0, 101, (32, 96)))
    np.save(folder / "few.npy", random.integers(0, 101, (2, 1400)))
    (folder / "forks").mkdir()
    bench = Bench(folder, Forks(folder / "forks"), {}, needed(model, torch.empty(7, 1400), -1))
    ended = bench.forks.run(*bench.command(folder / "one", "--json"))
    assert ended.code == 0, ended.stderr
    bench.record = json.loads(ended.stdout)
    yield bench
    bench.forks.close()


def torchrun(size: int, *arguments: object, module: str = "prunecomp") -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size, "-m", module,
        *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        timeout=SECONDS_TO_END,
    )  # fmt: skip


@pytest.mark.slow
def test_torchrun_gives_what_one_process_gives_and_prints_once(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "here" / "out"
    done = torchrun(2, *bench.command(out, "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["removed"] == bench.record["removed"]
    bench.equals_one_process(out)


@pytest.mark.slow
@pytest.mark.parametrize("deed", ["exit", "kill"])
def test_torchrun_ends_when_a_rank_is_lost_and_resumes(bench: Bench, tmp_path: Path, deed: str) -> None:
    out = tmp_path / "here" / "out"
    arguments = (2, "layer", 12, deed) if deed == "exit" else (0, "perplexity", 1, deed)
    lost = torchrun(3, *arguments, *bench.command(out), module="tests.killing")
    assert lost.returncode != 0
    assert lost.stdout == ""
    # The launcher ends the others as soon as the first of them has gone: a slower survivor may be stopped before it
    # speaks, the first one cannot.
    survivors = {0, 1, 2} - {arguments[0]}
    assert any(f"error: DistributedError: rank {survivor}: " in lost.stderr for survivor in survivors), lost.stderr
    assert "--resume" in lost.stderr
    # A killed process leaves its lock files, whose locks the kernel releases; where the first round was not yet decided
    # as the job ended, there is no journal.
    left = [path.name for path in out.parent.glob(".*") if path.suffix != ".lock"]
    assert left == [journal_path(out).name] or (deed == "exit" and not left)
    assert not out.exists()
    ended = bench.forks.job(bench.command(out, "--resume"), 3)
    assert [e.code for e in ended] == [0, 0, 0], ended
    bench.equals_one_process(out)


@pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_same(bench: Bench, tmp_path: Path, size: int, streamed: bool) -> None:
    out = tmp_path / "here" / "out"
    command = bench.command(out, *(["--device-memory", bench.limit, "--disk", tmp_path] if streamed else []))
    ended = bench.forks.job(command, size)
    assert [e.code for e in ended] == [0] * size, ended
    assert ended[0].stdout.count("layers removed") == 1
    assert [e.stdout + e.stderr for e in ended[1:]] == [""] * (size - 1)
    assert json.loads((out / "prunecomp.json").read_text())["streamed"] is streamed
    bench.equals_one_process(out)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]  # no file of states is left


def test_more_processes_than_micro_batches_differ_by_rounding_alone(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "here" / "out"
    ended = bench.forks.job(bench.command(out), 4)  # held_out has three micro-batches: its windows are dealt singly
    assert [e.code for e in ended] == [0] * 4, ended
    bench.equals_one_process(out, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        ("--metric", "taylor", "--candidates", "1-6"),
        ("--metric", "span", "--span", 2),
        pytest.param(("--metric", "ppl", "--lookahead"), marks=pytest.mark.slow),
        pytest.param(("--metric", "angular", "--confidence", 0.9), marks=pytest.mark.slow),
        pytest.param(("--repair", "joint"), marks=pytest.mark.slow),
        pytest.param(("--repair", "map"), marks=pytest.mark.slow),
        pytest.param(("--compensation", "search"), marks=pytest.mark.slow),
    ],
    ids=lambda options: options[1],
)
def test_every_metric_and_compensation_agrees_over_processes(
    bench: Bench, tmp_path: Path, options: tuple[object, ...]
) -> None:
    records = []
    for size in (1, 2):
        out = tmp_path / f"{size}"
        large = {bench.folder / "tokens.npy", bench.folder / "held_out.npy"}
        command = [bench.folder / "many.npy" if a in large else a for a in bench.command(out)]
        ended = bench.forks.job([*command, *options], size)
        assert [e.code for e in ended] == [0] * size, ended
        records.append(json.loads((out / "prunecomp.json").read_text()))
    one, two = records
    assert two["removed"] == one["removed"]
    np.testing.assert_allclose(two["scales"], one["scales"], rtol=1e-6)
    for ours, theirs in zip(two["rounds"], one["rounds"], strict=True):
        assert [ours["chosen"], ours["sequences"]] == [theirs["chosen"], theirs["sequences"]]
        np.testing.assert_allclose([*ours["scores"].values()], [*theirs["scores"].values()], rtol=1e-5)
    assert two["perplexity"]["pruned"] == pytest.approx(one["perplexity"]["pruned"], rel=1e-5)


LOST = [
    (harm, harmed)
    for harm in (Harm("layer", 12), Harm("layer", 3), Harm("perplexity", after=True))
    for harmed in (0, 1)
]


@pytest.mark.parametrize(
    ("harm", "harmed"),
    [LOST[0], LOST[5], *(pytest.param(*lost, marks=pytest.mark.slow) for lost in LOST[1:5])],
    ids=str,
)
def test_survivors_of_a_killed_process_say_so_by_themselves(
    bench: Bench, tmp_path: Path, harm: Harm, harmed: int
) -> None:
    out = tmp_path / "here" / "out"
    ended = bench.forks.job(bench.command(out), 3, harm=harm, harmed=harmed)
    for rank, e in enumerate(ended):
        if rank == harmed:
            assert e.code == -signal.SIGKILL
        else:
            assert e.code == 8
            assert f"rank {rank}: another process of this job is gone" in e.stderr
        assert e.seconds < SECONDS_TO_END
    if harm.after and harmed == 1:  # the first process had all it needed to write the checkpoint
        bench.equals_one_process(out)
        return
    assert [e.code for e in bench.forks.job(bench.command(out, "--resume"), 2)] == [0, 0]
    bench.equals_one_process(out)


def test_a_job_goes_on_with_the_journal_of_a_single_process(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "here" / "out"
    bench.forks.run(*bench.command(out), harm=Harm("journal", 3, after=True))
    ended = bench.forks.job(bench.command(out, "--resume"), 2)
    assert [e.code for e in ended] == [0, 0], ended
    bench.equals_one_process(out)


def test_every_process_gives_the_reason_why_a_job_is_refused(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    few = bench.folder / "few.npy"
    jobs = [
        (8, "5 sequences for 6 processes: give each at least one, or start fewer", bench.command(out), 6),
        (8, "2 sequences for 3 processes", [few if a == bench.folder / "tokens.npy" else a for a in bench.command(out)],
         3),
        (7, "exists", bench.command(bench.folder / "one"), 2),
    ]  # fmt: skip
    for code, message, command, size in jobs:
        for e in bench.forks.job(command, size):
            assert e.code == code, e
            assert message in e.stderr
    bench.forks.run(*bench.command(out), harm=Harm("perplexity"))
    for more, message in (((), "--resume, or remove it"), (("--resume", "--seed", 1), "options.seed was 0 and is 1")):
        for e in bench.forks.job(bench.command(out, *more), 2):
            assert e.code == 9, e
            assert message in e.stderr
    assert not out.exists()


@given(num=st.integers(1, 400), size=st.integers(1, 32), unit=st.integers(1, 50))
def test_shares_are_contiguous_whole_and_of_full_micro_batches(num: int, size: int, unit: int) -> None:
    if size > num:
        with pytest.raises(DistributedError, match=f"{num} sequences for {size} processes"):
            Workers(num, 0, size, unit)
        return
    workers = [Workers(num, rank, size, unit) for rank in range(size)]
    assert [i for w in workers for i in range(w.rows.start, w.rows.stop)] == list(range(num))
    assert min(w.share for w in workers) >= 1
    if -(-num // unit) >= size:
        assert all(w.share % unit == 0 for w in workers[:-1])
    step = unit if -(-num // unit) >= size else 1
    assert max(w.share for w in workers) - min(w.share for w in workers) < 2 * step


GATHERING = """
import torch
from prunecomp.engine.parallel import Workers, from_leader, least, process_group, rank

with process_group("cpu"):
    workers = Workers.current(5)
    for dtype in (torch.float64, torch.int64, torch.bool):
        for shape in ((5,), (5, 3), (5, 2, 2)):
            whole = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
            assert torch.equal(workers.gather(whole[workers.rows]), whole)
    assert least(10 - rank(), 3 + rank()) == (8, 3)
    assert from_leader(lambda: ("of", rank())) == ("of", 0)
    print(workers.share)
"""


@pytest.mark.slow
def test_uneven_shares_are_gathered_in_order(tmp_path: Path) -> None:
    (tmp_path / "gathering.py").write_text(GATHERING)
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "gathering.py"], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(3)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=SECONDS_TO_END)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert [output.strip() for output in outputs] == ["1", "2", "2"]
