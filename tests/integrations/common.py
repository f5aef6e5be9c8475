"""What the tests of integrations have in common: the export that our own command line makes of the bundled model, and
the examples of docs/how-to/integrations.md, which they run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.interop.exports import MODEL, unequal

ROOT = Path(__file__).parents[2]
CALIBRATION = MODEL / "calibration.txt"
OPTIONS: dict[str, Any] = {"samples": 4, "seqlen": 64}
"""As the page has them."""
UNREPAIRED: dict[str, Any] = {"repair": "none", "compensation": "none"}
LAYERS = 5
Tensors = dict[str, torch.Tensor]


def cli_export(out: Path, calibration: Path = CALIBRATION, **options: Any) -> Path:
    """By ``prunecomp prune``, in a process of its own; in the dtype of the weights, in which the tools load them."""
    given = {"layers": LAYERS, "calibration": calibration, "dtype": "bfloat16", "out": out, **OPTIONS, **options}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "prunecomp", "prune", str(MODEL), *words, "--no-verify"]
    subprocess.run(command, check=True, capture_output=True)
    return out


def differing(found: Tensors, meant: Tensors) -> int:
    """Tensors that are not the same bit for bit; a head that is the embedding may be listed again."""
    tied = found.keys() - meant.keys() == {"lm_head.weight"} and torch.equal(
        found["lm_head.weight"], found["model.embed_tokens.weight"]
    )
    return len(unequal({n: t for n, t in found.items() if not (tied and n == "lm_head.weight")}, meant))


def example(heading: str, language: str) -> str:
    """The first fence of a language below a heading that starts so."""
    page = (ROOT / "docs" / "how-to" / "integrations.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {heading}(?:(?!^## ).)*?^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found, f"{heading}: no example in {language}"
    return found[1]
