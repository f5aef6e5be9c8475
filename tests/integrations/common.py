"""What the tests of integrations have in common: the export that our own command line makes of the bundled model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "reference_model"
CALIBRATION = MODEL / "calibration.txt"
OPTIONS: dict[str, Any] = {"samples": 4, "seqlen": 64}
LAYERS = 5


def cli_export(out: Path, calibration: Path = CALIBRATION, model: Path = MODEL) -> Path:
    """By ``prunecomp prune``, in a process of its own; in the dtype of the weights, in which the tools load them."""
    words = ["prune", model, "--layers", LAYERS, "--calibration", calibration, "--samples", OPTIONS["samples"],
             "--seqlen", OPTIONS["seqlen"], "--dtype", "bfloat16", "--no-verify", "--out", out]  # fmt: skip
    subprocess.run([sys.executable, "-m", "prunecomp", *map(str, words)], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The tensors of that export by their names."""
    return load_file(cli_export(tmp_path_factory.mktemp("cli") / "out") / "model.safetensors")


def check_equal(found: dict[str, torch.Tensor], meant: dict[str, torch.Tensor]) -> None:
    """Tensor for tensor, bit for bit; a head that is the embedding may be listed again."""
    extra = set(found) - set(meant)
    assert extra <= {"lm_head.weight"}
    for name in extra:
        assert torch.equal(found[name], found["model.embed_tokens.weight"])
    assert set(meant) <= set(found)
    for name, tensor in meant.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
