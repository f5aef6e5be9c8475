"""Whatever is given: a result, or one of the package's own errors and its exit code; never another exception."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prunecomp
from prunecomp.compare import Arm
from prunecomp.errors import PrunecompError
from tests.situations.small import Small, invoke, small

__all__ = ["small"]

SOAK = "PRUNECOMP_SOAK" in os.environ
fuzzed = settings(
    derandomize=not SOAK, max_examples=1500 if SOAK else 60, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
CODES = {0, 2, 3, 4, 5, 6, 7, 9}

WORDS = re.findall(
    r"\S+",
    "0 1 2 3 -1 0-3 5-2 0--3 3,2 3,3 1,,2 3- 99 1e9 inf nan -0 0.9 18446744073709551616 auto cpu cuda "
    "cuda:9 mps meta official bi ppl span given taylor last scale none linear on off eager float16 down "
    "24GB 1.5MiB 1e400GB x[/b] /nonexistent True None ٣ ½",
)

words = st.one_of(
    st.sampled_from([*WORDS, "", " ", "\x1b[31m", "a\nb", "x" * 300, "9" * 5000]),
    st.text(max_size=8).filter(lambda text: "\0" not in text),
)
OPTIONS = re.findall(
    r"\S+",
    "samples seqlen seed dtype device metric compensation keep candidates given span confidence parity "
    "fold max-shard-size attn backend device-memory host-memory disk",
)

FLAGS = ["documents", "one-shot", "lookahead", "no-verify", "recipe", "json"]
SAFE_SAMPLES = st.sampled_from(["", "0", "-1", "1", "3", "4", "nan", "x", "1.5"])  # many windows would be drawn


def written(draw: st.DrawFn, names: list[str], flags: list[str]) -> list[str]:
    line = []
    for name in draw(st.lists(st.sampled_from(names), max_size=3, unique=True)):
        line.append(f"--{name}={draw(SAFE_SAMPLES if name == 'samples' else words)}")
    return [*line, *(f"--{flag}" for flag in draw(st.lists(st.sampled_from(flags), max_size=1)))]


@st.composite
def lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    command = draw(st.sampled_from(["prune", "score", "plan", "compare", "eval"]))
    layers = draw(st.one_of(st.just("2"), words))
    if command == "prune":
        return command, [f"--layers={layers}", *written(draw, OPTIONS, FLAGS)]
    if command == "score":
        left_out = {"keep", "candidates", "confidence", "fold", "max-shard-size"}
        return command, written(draw, [o for o in OPTIONS if o not in left_out], ["documents", "lookahead", "json"])
    if command == "plan":
        known = ["metric", "span", "seqlen", "dtype", "device", "device-memory", "host-memory", "disk"]
        return command, [f"--layers={layers}", *written(draw, known, ["json"])]
    if command == "compare":
        known = [
            "metrics",
            "compensations",
            "preset",
            "samples",
            "seqlen",
            "seed",
            "keep",
            "candidates",
            "given",
            "parity",
            "attn",
            "device",
            "disk",
        ]
        return command, [f"--layers={layers}", *written(draw, known, ["one-shot", "both-ways", "json"])]
    known = ["seqlen", "dtype", "device", "attn", "device-memory", "host-memory", "disk"]
    return command, written(draw, known, ["json"])


@fuzzed
@given(line=lines(), stream=st.booleans())
def test_the_command_line(small: Small, tmp_path: Path, line: tuple[str, list[str]], stream: bool) -> None:
    command, options = line
    data, out = small.stream if stream else small.windows, tmp_path / "out"
    if stream and command != "plan" and not any(word.startswith(("--samples", "--seqlen")) for word in options):
        options = [*options, "--seqlen=16", *(["--samples=3"] if command != "eval" else [])]
    inputs: dict[str, list[Any]] = {
        "prune": ["--calibration", data, "--out", out], "score": ["--calibration", data], "plan": [],
        "compare": ["--calibration", data, "--eval", f"x={data}", "--out", out], "eval": ["--eval", data],
    }  # fmt: skip
    result = invoke(command, small.folder, *inputs[command], *options)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in CODES, result.output
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([] if result.exit_code or command not in ("prune", "compare") else ["out"])
    shutil.rmtree(out, ignore_errors=True)


class Odd:
    """Something else."""


ODD = [Odd(), Odd, np.int64(2), np.float32(2), np.array([3, 4]), torch.tensor(2), torch.tensor([3, 4]), torch.float32,
       torch.float16, torch.device("cpu"), torch.device("meta"), range(10**12), b"bi", {"a": 1}, {3, 4},
       3 + 4j, Ellipsis, Path("/nonexistent"), Arm("bi", "none"),
       [Arm("bi", "none")], torch.nn.Linear(1, 1)]  # fmt: skip
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 7),
    st.sampled_from([2**63, 2**64, -(2**70), 10**30]),
    st.floats(),
    words,
    st.lists(st.integers(-2, 7), max_size=4),
    st.lists(st.one_of(st.text(max_size=3), st.none(), st.floats())),
    st.sampled_from(ODD),
)
COMMON = ["seqlen", "dtype", "device", "attn", "allow_pickle", "tokenizer", "device_memory", "host_memory", "disk"]
SCORING = [*COMMON, "seed", "documents", "metric", "compensation", "span", "backend"]
ARGUMENTS = {
    "prune": [*SCORING, "model", "layers", "one_shot", "keep", "candidates", "given", "lookahead", "confidence",
              "parity", "fold", "compile", "journal", "resume", "cache"],
    "score": [*SCORING, "model", "given", "lookahead", "parity"],
    "pruner_for": [*SCORING, "model", "candidates"],
    "collect": [*COMMON, "model", "seed", "backend"],
    "evaluate": [*COMMON, "model"],
    "plan": ["model", "layers", "metric", "span", "seqlen", "dtype", "device", "device_memory", "host_memory", "disk"],
    "compare": [*COMMON, "model", "layers", "arms", "metrics", "compensations", "one_shot", "parity", "preset", "seed",
                "keep", "candidates", "given", "earlier"],
}  # fmt: skip


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    name = draw(st.sampled_from(sorted(ARGUMENTS)))
    changed = draw(st.lists(st.sampled_from(ARGUMENTS[name]), min_size=1, max_size=2, unique=True))
    return name, {argument: draw(anything) for argument in changed}


@fuzzed
@given(call=calls(), held=st.booleans())
def test_the_functions(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[str, dict[str, Any]], held: bool
) -> None:
    monkeypatch.chdir(tmp_path)  # a journal may be named anything
    name, changed = call
    tokens = np.load(small.windows)
    arguments: dict[str, Any] = {"model": small.folder}
    if held and name != "plan":
        arguments["model"] = prunecomp.pruner_for(small.folder, tokens).decoder.model
    if name in ("prune", "plan"):
        arguments["layers"] = 2
    if name == "compare":
        arguments |= {"layers": [1], "eval": {"x": tokens}}
    if name == "evaluate":
        arguments["eval"] = tokens
    elif name != "plan":
        arguments["calibration"] = tokens
    with suppress(PrunecompError):
        getattr(prunecomp, name)(**{**arguments, **changed})
