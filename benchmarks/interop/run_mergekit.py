"""mergekit on the recipe of an export: the tensors it makes from the base model are those of the export."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.interop.exports import UP, Exports, logits
from benchmarks.interop.report import Finding


def run(exports: Exports) -> list[Finding]:
    (export,) = (e for e in exports.repaired if e.name == UP)  # the one form that has a recipe with scales
    merged = exports.work / "merged"
    command = [sys.executable, "-m", "mergekit.scripts.run_yaml", str(export.folder / "mergekit.yml"), str(merged)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"mergekit: {done.stderr[-800:]}")
    made, right, wrong = (read(folder) for folder in (merged, export.folder, exports.control.folder))
    differing = len(unequal(made, right))
    return [
        Finding(
            "mergekit", export.name, "tensors that are not the export's, bit for bit",
            differing, 0, len(unequal(made, wrong)), f"{len(right)} tensors",
        ),
        Finding(
            "mergekit", export.name, "logits of the merged folder as it stands, largest difference",
            largest(logits(merged), logits(export.folder)), 0, largest(logits(merged), logits(exports.control.folder)),
        ),
    ]  # fmt: skip


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def unequal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> list[str]:
    """Names that only one has, or whose tensors differ in dtype, shape or a bit."""
    both = some.keys() & others.keys()
    differ = {n for n in both if some[n].dtype != others[n].dtype or not torch.equal(some[n], others[n])}
    return sorted((some.keys() ^ others.keys()) | differ)


def largest(some: torch.Tensor, others: torch.Tensor) -> float:
    return float((some - others).abs().max())
