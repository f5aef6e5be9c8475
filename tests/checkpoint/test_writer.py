"""Writes that fail or are killed leave no output behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from prunecomp.checkpoint.writer import atomic_folder, check_output
from prunecomp.errors import OutputError
from tests.models import build

KILLED = """
import os, resource, signal, sys
import numpy as np
import prunecomp
import prunecomp.checkpoint.writer as writer

base, out, moment = sys.argv[1:]
result = prunecomp.prune(base, 2, np.random.default_rng(0).integers(0, 101, (3, 16)), preset="paper")
if moment == "disk-full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
elif moment == "killed-in-a-shard":
    save, calls = writer.save_file, []
    def save_file(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        save(*args, **kwargs)
    writer.save_file = save_file
elif moment == "killed-before-rename":
    writer.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)
try:
    result.save(out, shard_bytes=80_000)
except prunecomp.errors.OutputError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def base(saved: Callable[[Any], Path]) -> Path:
    return saved(build("llama"))


def run(base: Path, out: Path, moment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED, str(base), str(out), moment]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_full_disk_is_told_and_leaves_nothing(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "here" / "out"
    done = run(base, out, "disk-full")
    assert done.returncode == OutputError.exit_code, done.stderr
    assert "could not be written" in done.stdout
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("moment", ["killed-in-a-shard", "killed-before-rename"])
def test_a_killed_write_leaves_no_output_and_the_next_one_cleans_up(base: Path, tmp_path: Path, moment: str) -> None:
    out = tmp_path / "here" / "out"
    assert run(base, out, moment).returncode == -signal.SIGKILL
    assert not out.exists()
    done = run(base, out, "unharmed")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 4


def test_an_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        check_output(tmp_path)
    with pytest.raises(OutputError, match="exists"):
        check_output(tmp_path / "file")


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
