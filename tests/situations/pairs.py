"""Runs at the same time in processes forked from one that has imported everything.

``python -m tests.situations.pairs FOLDER COUNT`` prunes the model in FOLDER/base COUNT times with two runs to the same
output, one of which removes a layer and the other two, and prints how each pair ended.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

import prunecomp.cli
from tests.forks import warm_up
from tests.models import build


def make_base(folder: Path) -> None:
    """A tiny model and calibration tokens, as ``base`` and ``tokens.npy``; to warm up on as well."""
    torch.manual_seed(0)
    build("llama", hidden_size=16, intermediate_size=32).save_pretrained(folder / "base")
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 101, (4, 16)))
    (folder / "warm").symlink_to("base")
    (folder / "warm.npy").symlink_to("tokens.npy")


def arguments(folder: Path, out: Path, layers: int, *more: object) -> list[str]:
    tokens = folder / "tokens.npy"
    command = (
        "prune",
        folder / "base",
        "--layers",
        layers,
        "--preset",
        "paper",
        "--calibration",
        tokens,
        "--out",
        out,
        *more,
    )
    return [str(each) for each in command]


def together(commands: list[list[str]], log: Path) -> list[int]:
    """The exit codes of commands that are started at once, each with its error stream in a file of its own."""
    start, go = os.pipe()
    processes = []
    for number, command in enumerate(commands):
        processes.append(os.fork())
        if processes[-1] == 0:
            os.close(go)
            os.dup2(os.open(f"{log}.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.read(start, 1)  # returns when the other end is closed
            code = 1
            try:
                sys.argv = ["prunecomp", *command]
                prunecomp.cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                os._exit(code)
    os.close(go)
    os.close(start)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def ended(folder: Path, number: int) -> dict[str, Any]:
    """How one pair ended: codes, messages, what lies there, and whose config, record and weights."""
    out = folder / f"pair-{number}" / "out"
    codes = together([arguments(folder, out, layers) for layers in (1, 2)], folder / "log")
    record = json.loads((out / "prunecomp.json").read_text())
    with safe_open(out / "model.safetensors", "pt") as weights:
        layers = {name.split(".")[2] for name in weights.keys() if name.startswith("model.layers.")}  # noqa: SIM118
    return {
        "codes": codes,
        "messages": [(folder / f"log.{each}").read_text() for each in range(2)],
        "there": [path.name for path in out.parent.iterdir()],
        "removed": [6 - json.loads((out / "config.json").read_text())["num_hidden_layers"], len(record["removed"]),
                    6 - len(layers)],
    }  # fmt: skip


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    warm_up(folder)
    for pair in range(int(sys.argv[2])):
        print(json.dumps(ended(folder, pair)), flush=True)
