"""Compiled layers: the same choices, the same values to rounding, and on only where the work pays for it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import prunecomp
from prunecomp.engine.placement import COMPILE_PAYS_FROM, should_compile
from prunecomp.errors import OptionError
from tests.models import build, draw_tokens
from tests.tolerances import SCALE


@pytest.mark.slow
def test_compiled_layers_choose_the_same(generator: torch.Generator) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    plain, compiled = (prunecomp.prune(model, 2, tokens, compile=option, preset="paper") for option in ("off", "on"))
    assert compiled.compiled
    assert not plain.compiled
    assert compiled.removed == plain.removed
    np.testing.assert_allclose(compiled.scales, plain.scales, rtol=SCALE)


def test_auto_compiles_from_the_work_that_pays_for_it() -> None:
    cpu = torch.device("cpu")
    assert not should_compile("auto", COMPILE_PAYS_FROM["cpu"] / 2, cpu)
    assert should_compile("auto", COMPILE_PAYS_FROM["cpu"] * 2, cpu)
    assert not should_compile("off", 1e30, cpu)
    assert should_compile("on", 0.0, cpu)
    with pytest.raises(OptionError, match="--compile maybe"):
        should_compile("maybe", 0.0, cpu)


def test_nothing_compiles_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    assert not should_compile("auto", 1e30, torch.device("cpu"))
    with pytest.raises(OptionError, match="there is no /nonexistent/c"):
        should_compile("on", 0.0, torch.device("cpu"))
    gpu = torch.device("cuda")
    monkeypatch.setattr("prunecomp.engine.placement.find_spec", lambda name: name)
    monkeypatch.setenv("CC", sys.executable)
    assert should_compile("on", 0.0, gpu), "its kernels are made by Triton"
    assert should_compile("auto", 2 * COMPILE_PAYS_FROM["cuda"], gpu)
    assert not should_compile("auto", COMPILE_PAYS_FROM["cuda"] / 2, gpu)
    for lacks in ("prunecomp.engine.placement.find_spec", "prunecomp.engine.placement.shutil.which"):
        with monkeypatch.context() as without:
            without.setattr(lacks, lambda name: None)
            assert not should_compile("auto", 1e30, gpu)
            with pytest.raises(
                OptionError, match=r"needs Triton and a C compiler for a GPU; install prunecomp\[triton\]"
            ):
                should_compile("on", 0.0, gpu)
