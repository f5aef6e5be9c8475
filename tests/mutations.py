"""Small faults put into the package, one at a time, and those that no test notices: ``python -m tests.mutations``.

Needs what ``make coverage`` leaves: which test reaches which line, and how long each takes. The tests that reach a
fault run in a process forked from this one, which has imported everything but the package, quickest first, until one
fails; in the end all that failed run once more without a fault, and must pass.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import io
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import coverage
import hypothesis  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import numpy as np  # noqa: F401
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM  # noqa: F401

ROOT = Path(__file__).parent.parent
PARTS = ("engine", "checkpoint", "compensation", "metrics")
SWAPS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "is": "is not", "is not": "is", "in": "not in",
    "not in": "in", "+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "+", "@": "*", "**": "*",
    "min": "max", "max": "min", "any": "all", "all": "any", "argmin": "argmax", "argmax": "argmin", "append": "extend",
    "and": "or", "or": "and", "True": "False", "False": "True",
}  # fmt: skip
OPERATOR = re.compile(r"\*\*|<=|>=|==|!=|//|not\s+in|is\s+not|\bis\b|\bin\b|\band\b|\bor\b|[<>+\-*/%@]")
BUDGET = 60.0
"""Seconds of tests that a fault is first given; one that they do not notice gets all that reach it."""


@dataclass(frozen=True)
class Fault:
    """``new`` in the place of the bytes ``start`` to ``stop`` of a file."""

    file: Path
    line: int
    start: int
    stop: int
    new: str

    def apply(self, text: bytes) -> bytes:
        return text[: self.start] + self.new.encode() + text[self.stop :]

    def diff(self) -> str:
        text = self.file.read_bytes()
        before, after = (source.decode().splitlines() for source in (text, self.apply(text)))
        return "\n".join([*difflib.unified_diff(before, after, n=0, lineterm="")][3:])


def faults(file: Path) -> Iterator[Fault]:
    """Everything that might be put wrong in a file, but for its texts and its annotations."""
    text = file.read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def at(line: int, column: int) -> int:
        return starts[line - 1] + column

    def span(node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, (ast.expr, ast.stmt))
        return at(node.lineno, node.col_offset), at(node.end_lineno or 0, node.end_col_offset or 0)

    def fault(node: ast.AST, start: int, stop: int, new: str) -> Fault:
        assert isinstance(node, (ast.expr, ast.stmt))
        return Fault(file, node.lineno, start, stop, new)

    def operator(node: ast.expr, left: ast.expr, right: ast.expr) -> Iterator[Fault]:
        start, stop = span(left)[1], span(right)[0]
        found = OPERATOR.search(text[start:stop].decode())
        if found is not None and (new := SWAPS.get(re.sub(r"\s+", " ", found[0]))):
            yield fault(node, start + found.start(), start + found.end(), new)

    def visit(node: ast.AST) -> Iterator[Fault]:
        match node:
            case ast.JoinedStr() | ast.Raise() | ast.Import() | ast.ImportFrom():
                return  # what is said, not what is done
            case ast.AnnAssign(value=ast.expr() as value):
                yield from visit(value)
                return
            case ast.FunctionDef(body=body):
                for statement in body:
                    yield from visit(statement)
                return
            case ast.Compare(left=left, comparators=[right]):
                yield from operator(node, left, right)
            case ast.BinOp(left=left, right=right):
                yield from operator(node, left, right)
            case ast.BoolOp(values=values):
                for left, right in pairwise(values):
                    yield from operator(node, left, right)
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                start = span(node)[0]
                yield fault(node, start, start + (3 if isinstance(node.op, ast.Not) else 1), "")
            case ast.Constant(value=bool()):
                yield fault(node, *span(node), SWAPS[str(node.value)])
            case ast.Constant(value=int() | float()):
                yield fault(node, *span(node), repr(node.value + 1))
            case ast.Name(id=name) if name in SWAPS:
                yield fault(node, *span(node), SWAPS[name])
            case ast.Attribute(attr=name) if name in SWAPS:
                stop = span(node)[1]
                yield fault(node, stop - len(name), stop, SWAPS[name])
            case ast.Break() | ast.Continue():
                yield fault(node, *span(node), "continue" if isinstance(node, ast.Break) else "break")
            case ast.Return(value=ast.expr()):
                yield fault(node, *span(node), "return None")
            case ast.Expr(value=ast.Call()) | ast.AugAssign():
                yield fault(node, *span(node), "pass")
            case ast.If(test=test) | ast.IfExp(test=test):
                start, stop = span(test)
                yield fault(node, start, stop, f"not ({text[start:stop].decode()})")
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(text))


class Reach:
    """The tests that reach a line, in the order in which to try them."""

    def __init__(self, folder: Path) -> None:
        self._data = coverage.CoverageData(str(folder / ".coverage"))
        self._data.read()
        self.seconds: dict[str, float] = json.loads((folder / ".seconds.json").read_text())

    def of(self, fault: Fault, budget: float = BUDGET) -> list[str]:
        contexts = self._data.contexts_by_lineno(str(fault.file))
        names = {name.rpartition("|")[0] for name in contexts.get(fault.line, ())} & self.seconds.keys()
        if not names:  # it runs as the file is imported, or in another process: by whatever reaches the file
            names = {n.rpartition("|")[0] for line in contexts.values() for n in line} & self.seconds.keys()
        tests, seen, spent = [], Counter[str](), 0.0
        ranked = []
        for name in sorted(names, key=self.seconds.__getitem__):
            function = name.partition("[")[0]
            ranked.append((seen[function], name))  # one case of each before the second of any
            seen[function] += 1
        for _, name in sorted(ranked, key=lambda pair: (pair[0], self.seconds[pair[1]])):
            spent += self.seconds[name]
            if spent > budget and tests:
                break
            tests.append(name)
        return tests


@dataclass(frozen=True)
class Failures:
    """A plugin that writes down which tests fail."""

    file: Path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            with self.file.open("a") as file:
                file.write(report.nodeid + "\n")


def run(fault: Fault | None, tests: list[str], copy: Path) -> int:
    """In a forked process: never returns to the caller. The package and its tests are those of ``copy``."""
    if fault is not None:
        target = copy / fault.file.relative_to(ROOT)
        target.write_bytes(fault.apply(fault.file.read_bytes()))
    os.chdir(copy)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "prunecomp", "benchmarks")]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:pytest_cov"]
        options = ["-q", *(["-x"] if fault is not None else []), *plugins, f"--basetemp={copy}/temporary"]
        return int(pytest.main([*options, *tests], plugins=[Failures(copy.parent / "failed")]))


def noticed(fault: Fault | None, tests: list[str], seconds: float) -> tuple[str | None, list[str]]:
    """How, or None where all tests pass; and those that failed."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "copy"
        leave = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "build", "dist", "demo-out")
        (copy / "examples").parent.mkdir()
        for entry in ROOT.iterdir():
            if entry.name in ("prunecomp", "tests"):
                shutil.copytree(entry, copy / entry.name, ignore=leave)
            elif entry.name[0] != "." or entry.name == ".pytest_cache":
                (copy / entry.name).symlink_to(entry)
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.setsid()
                for stream in (1, 2):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
                limit = int(30 + 5 * seconds)
                resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
                code = run(fault, tests, copy)
            finally:
                os._exit(code)
        ended, deadline = (0, 0), time.monotonic() + 600
        while ended[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
            ended = os.waitpid(child, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if ended[0] == 0:
            os.waitpid(child, 0)
            return "it hung", []
        failed = (copy.parent / "failed").read_text().splitlines() if (copy.parent / "failed").exists() else []
    code = os.waitstatus_to_exitcode(ended[1])
    if code in (4, 5):
        raise SystemExit(f"the tests were not found: {tests[:3]}")
    how = {0: None, 1: f"by {failed[0] if failed else 'the end'}", 2: "as it is imported"}
    return how.get(code, f"it ended with {code}"), failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", default=PARTS, help="packages or files of prunecomp")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reach = Reach(ROOT)
    paths = [ROOT / "prunecomp" / part for part in options.parts]
    files = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))
    every = [fault for file in files for fault in faults(file)]
    chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
    print(f"{len(chosen)} of {len(every)} faults in {len(files)} files, seed {options.seed}", flush=True)
    missed, failures = 0, set[str]()
    for number, fault in enumerate(chosen, 1):
        tests = reach.of(fault)
        started = time.monotonic()
        how, failed = noticed(fault, tests, sum(reach.seconds[t] for t in tests)) if tests else (None, [])
        rest = [] if how is not None else [test for test in reach.of(fault, math.inf) if test not in tests]
        if rest:
            how, failed = noticed(fault, rest, sum(reach.seconds[t] for t in rest))
            tests += rest
        failures.update(failed)
        missed += how is None
        where = f"{fault.file.relative_to(ROOT)}:{fault.line}"
        print(f"{number:4d} {where} ({len(tests)} tests, {time.monotonic() - started:.0f} s): {how or 'NOT NOTICED'}")
        if how is None:
            print(fault.diff())
        sys.stdout.flush()
    print(f"{len(chosen) - missed} of {len(chosen)} were noticed ({(len(chosen) - missed) / len(chosen):.1%})")
    _, wrong = noticed(None, sorted(failures), 600.0) if failures else (None, [])
    print(*(f"{test} fails without a fault: what it noticed does not count" for test in wrong), sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
