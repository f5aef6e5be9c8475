"""The command line in processes forked from one that has imported everything: a trial costs no import.

``python -m tests.forks`` is that process: it reads trials as JSON lines and answers each with how it ended.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import prunecomp.cli
from tests.killing import PHASES, Harm, tell_phases
from tests.models import build

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Ended:
    """How one process ended; ``code`` is negative for a signal."""

    code: int
    phase: str
    seconds: float
    stdout: str
    stderr: str


class Forks:
    """The other end of ``python -m tests.forks``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        build("llama").save_pretrained(folder / "warm")  # here: it leaves a thread behind
        np.save(folder / "warm.npy", np.zeros((1, 4), dtype=np.int64))
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(folder)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, *arguments: object, harm: Harm | None = None, delay: float | None = None) -> Ended:
        """Run ``prunecomp ARGUMENTS``, come to harm at a point, or killed after ``delay`` seconds."""
        return self.job(arguments, 1, harm=harm, delay=delay)[0]

    def job(
        self,
        arguments: Sequence[object],
        size: int,
        *,
        harm: Harm | None = None,
        harmed: int = 0,
        delay: float | None = None,
    ) -> list[Ended]:
        """The same in ``size`` processes of one job, with nobody like torchrun to look after them."""
        trial = {
            "arguments": [str(a) for a in arguments], "size": size, "delay": delay, "harmed": harmed,
            "harm": None if harm is None else asdict(harm),
        }  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(trial) + "\n")
        self._server.stdin.flush()
        return [
            Ended(stdout=self._output(rank, "out"), stderr=self._output(rank, "err"), **ended)
            for rank, ended in enumerate(json.loads(self._server.stdout.readline()))
        ]

    def _output(self, rank: int, stream: str) -> str:
        return (self._folder / f"{rank}.{stream}").read_text()

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


def child(trial: dict[str, Any], rank: int, port: int, phase: mmap.mmap, folder: Path) -> None:
    """Never returns."""
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(trial["size"]), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    tell_phases(lambda name: phase.__setitem__(0, PHASES.index(name)))
    if trial["harm"] is not None and rank == trial["harmed"]:
        Harm(**trial["harm"]).arm()
    code = 1
    try:
        sys.argv = ["prunecomp", *trial["arguments"]]
        prunecomp.cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def warm_up(folder: Path) -> None:
    """One run, so that all that is imported or made on first use is there."""
    arguments = [
        "prune",
        folder / "warm",
        "--layers",
        1,
        "--preset",
        "paper",
        "--calibration",
        folder / "warm.npy",
        "--out",
        folder / "out",
    ]
    with redirect_stdout(io.StringIO()):
        assert prunecomp.cli.call([str(a) for a in arguments]) == 0
    for timer in set(threading.enumerate()) - {threading.current_thread()}:
        timer.join(timeout=10)
    assert len(os.listdir("/proc/self/task")) == 1, "threads do not survive a fork"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(folder: Path) -> None:
    torch.set_num_threads(1)
    warm_up(folder)
    for line in sys.stdin:
        trial = json.loads(line)
        port = free_port()
        phases = [mmap.mmap(-1, 1) for _ in range(trial["size"])]
        started = time.perf_counter()
        processes: list[int] = []
        for rank, phase in enumerate(phases):
            process = os.fork()
            if process == 0:
                child(trial, rank, port, phase, folder)
            processes.append(process)
        if trial["delay"] is not None:
            time.sleep(trial["delay"])
            os.kill(processes[trial["harmed"]], signal.SIGKILL)
        endings = []
        for process, phase in zip(processes, phases, strict=True):
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            endings.append({"code": code, "phase": PHASES[phase[0]], "seconds": time.perf_counter() - started})
        print(json.dumps(endings), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
