"""The Triton back end without a GPU: its kernels under the interpreter, in a process that has the variable set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from prunecomp.errors import BackendError
from prunecomp.ops import layer_stats

pytest.importorskip("triton", reason="install prunecomp[triton]")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("mark", "least"), [("not slow", 25), pytest.param("slow", 15, marks=pytest.mark.slow)], ids=["quick", "slow"]
)
def test_kernels_agree_with_float64_under_the_interpreter(tmp_path: Path, mark: str, least: int) -> None:
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", mark, f"--junit-xml={report}"]
    result = subprocess.run(
        [*command, "tests/ops/interpreted"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    assert int(suite.attrib["tests"]) > least
    assert int(suite.attrib["skipped"]) == 0


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs on the CPU")
def test_without_the_interpreter_the_cpu_is_refused_with_a_remedy() -> None:
    x = torch.zeros(1, 2, 3)
    with pytest.raises(BackendError, match="'triton' cannot run layer_stats on cpu: it needs a GPU"):
        layer_stats(x, x, backend="triton")
