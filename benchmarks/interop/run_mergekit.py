"""mergekit on the recipe of an export: the tensors it makes from the base model are those of the export."""

from __future__ import annotations

import subprocess
import sys

import torch

from benchmarks.interop.exports import UP, Exports, logits, read, unequal
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


def largest(some: torch.Tensor, others: torch.Tensor) -> float:
    return float((some - others).abs().max())
