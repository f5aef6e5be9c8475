"""Every command and snippet of the README and the site runs, in the order in which it stands on its page.

A page has a folder of its own, in which examples/ and models/ are what a reader has in a checkout. So that a page takes
seconds, not minutes:

- the bundled model stands in for SmolLM2 and names of the hub; for a GGUF and a quantised checkpoint, small
  ones are made (``STAND_INS``);
- the bundled texts are cut after their first ``CHARACTERS``, and answers to chat prompts after ``ANSWERED`` tokens;
- where a snippet does not say how many windows, they are ``WINDOWS`` of ``TOKENS`` tokens, in float32, and
  a probe has ten problems.

What cannot run here is named in ``ELSEWHERE``, with the test that stands for it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from prunecomp.evaluation.profile import capabilities
from prunecomp.options import declare
from tests.checkpoint import quantising
from tests.command_line import invoke
from tests.model import test_gguf
from tests.models import build

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "reference_model"
CALLERS = ROOT / "docs" / "how-to" / "integrations.md"
"""Its calls need the tools that make them: ``make interop`` has them, and ``tests/integrations`` runs them."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"sh", "python", "toml"}
SHOWN = {"", "text", "mermaid", "json", "yaml"}
"""Fences of what is not run."""
CHARACTERS, WINDOWS, TOKENS, ANSWERED = 1_500, 2, 32, 6
STAND_INS = {
    "meta-llama/Llama-3.1-70B": "examples/reference_model",
    " --host-memory 200GB": "",  # there is none behind a CPU
    "--layers 16": "--layers 6",  # the bundled model has 16
    "--samples 24 --seqlen 256": f"--samples {WINDOWS} --seqlen {TOKENS}",
}
ELSEWHERE = {
    "pip install": "tests/test_packaging.py installs the package; constraints.txt pins what else there is",
    "make": "the Makefile's targets run these tests and tests/test_demo.py",
    "python examples/smollm2.py": "fetches from the index; tests/test_demo.py",
    "torchrun --nnodes": "needs several machines; tests/test_distributed.py has several processes",
    "vllm serve": "vLLM is no dependency",
}
SLOW = {"many-gpus.md", "tutorial.md", "profile.md", "compare.md", "curve.md"}


@dataclass(frozen=True)
class Fence:
    language: str
    text: str
    line: int


def fences(page: Path) -> list[Fence]:
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines, start=1):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
        else:
            found.append(Fence(lines[start - 1][3:].strip(), "\n".join(lines[start : number - 1]) + "\n", start))
            start = None
    assert start is None, f"{page}: a fence is left open"
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, without comments."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        for name, other in STAND_INS.items():
            line = line.replace(name, other)
        words = shlex.split(line, comments=True)
        if words:
            yield words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> Path:
    """What a reader has, and the files of his own that pages speak of."""
    shutil.copytree(MODEL, tmp_path / "examples" / "reference_model", copy_function=link_or_cut)
    shutil.copytree(ROOT / "examples" / "texts", tmp_path / "examples" / "texts", copy_function=link_or_cut)
    shutil.copy(ROOT / "examples" / "search.py", tmp_path / "examples")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "SmolLM2-135M-Instruct").symlink_to(tmp_path / "examples" / "reference_model")
    shutil.copy(tmp_path / "examples" / "texts" / "verse.txt", tmp_path / "text.txt")
    (tmp_path / "chats.jsonl").write_text('{"text": "One of the lines that were said, and not a short one. "}\n' * 40)
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(capabilities.__kwdefaults__, "most", ANSWERED)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(declare.Options, "of", classmethod(small_windows(declare.Options.of.__func__)))
    return tmp_path


def link_or_cut(source: str, target: str) -> None:
    if source.endswith(".txt"):
        Path(target).write_text(Path(source).read_text(encoding="utf-8")[:CHARACTERS], encoding="utf-8")
    else:
        os.symlink(source, target)


def small_windows(of: Any) -> Any:
    """Options read as ever, with small windows where nothing is said of them."""
    usual = {"samples": WINDOWS, "seqlen": TOKENS, "dtype": "float32", "items": 10}

    def read(cls: Any, caller: str, given: Mapping[str, Any], *on: Any, **more: Any) -> Any:
        known = {each.name for each in cls.options(caller)}
        data = given.get("calibration")
        if data is not None and (not isinstance(data, str) or data.endswith(".npy")):  # windows as they are
            known -= {"samples", "seqlen"}
        if caller != "profile" and not given.get("profile") and "task:" not in str(given.get("target")):
            known -= {"items"}  # nothing asks any
        return of(cls, caller, {**{n: v for n, v in usual.items() if n in known}, **given}, *on, **more)

    return read


def make_gguf(folder: Path) -> None:
    model = build("llama", hidden_size=64, intermediate_size=96, num_hidden_layers=test_gguf.LAYERS)
    test_gguf.write(folder / "model.gguf", model)
    np.save(folder / "tokens.npy", test_gguf.TOKENS)


def make_quantised(folder: Path, generator: torch.Generator) -> None:
    """A small FP8 checkpoint with the bundled tokenizer."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(MODEL / "tokenizer.json"))
    made = folder / "quantised-model"
    build("llama", vocab_size=len(tokenizer)).save_pretrained(made)
    tokenizer.save_pretrained(made)
    quantising.quantise(made, quantising.FP8["fp8-tensor"], generator)


def run_command(words: list[str], folder: Path) -> None:
    line = shlex.join(words)
    if any(line.startswith(known) for known in ELSEWHERE):
        return
    if words[0] == "prunecomp":
        answer = invoke(*words[1:])
        assert answer.exit_code == 0, answer.output
    elif words[0] == "torchrun":
        small = ["--samples", str(WINDOWS), "--seqlen", str(TOKENS), "--dtype", "float32"]
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:], *small]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            program, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert done.returncode == 0, done.stderr
    elif words[0] == "python":
        before, sys.argv = sys.argv, words[1:]
        try:
            runpy.run_path(words[1], run_name="__main__")
        finally:
            sys.argv = before
    else:
        assert words[0] == "ls", f"no test knows how to run {line}"
        assert list(Path(words[1]).iterdir())


def install(metadata: str, folder: Path) -> None:
    """The entry points of a pyproject.toml, as pip would install them."""
    groups = tomllib.loads(metadata)["project"]["entry-points"]
    info = folder / "of_a_page-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: of-a-page\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in names.items()) for group, names in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    importlib.invalidate_caches()


def run(fence: Fence, folder: Path, names: dict[str, Any]) -> None:
    first = fence.text.partition("\n")[0].removeprefix("# ")
    if fence.language == "sh":
        for words in commands(fence.text):
            run_command(words, folder)
    elif fence.language == "toml":
        install(fence.text, folder)
    elif not (first.startswith("needs ") and find_spec(first.removeprefix("needs ")) is None):
        if first.endswith(".py"):
            (folder / first).write_text(fence.text)
        exec(compile(fence.text, f"line {fence.line}", "exec"), names)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in PAGES
        if page != CALLERS and any(fence.language in LANGUAGES for fence in fences(page))
    ],
)
def test_a_page_runs_from_top_to_bottom(page: Path, folder: Path, generator: torch.Generator) -> None:
    if page.name == "gguf.md":
        pytest.importorskip("gguf")
        make_gguf(folder)
    if page.name == "quantised.md":
        make_quantised(folder, generator)
    names: dict[str, Any] = {"__name__": "__page__"}
    for fence in fences(page):
        if fence.language in LANGUAGES:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    run(fence, folder, names)
            except BaseException as error:
                error.add_note(f"{page.relative_to(ROOT)}, line {fence.line}") if hasattr(error, "add_note") else None
                raise


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_fence_is_run_or_shown_on_purpose(page: Path) -> None:
    assert {fence.language for fence in fences(page)} <= LANGUAGES | SHOWN
