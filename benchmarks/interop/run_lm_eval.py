"""lm-eval on a local task: the perplexity it finds is the one we find."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.interop.exports import Export, Exports, evaluation_text, nats, tokenize
from benchmarks.interop.report import Finding

TASKS = Path(__file__).parent / "tasks"
DOCUMENTS = 24
PREFIX = 0  # <|endoftext|>, the model's BOS: lm-eval puts it before each document
TOLERANCE = 1e-5


def run(exports: Exports) -> list[Finding]:
    # Paragraphs of some length that still fit into the context, so that no document is cut into windows.
    paragraphs = (part for part in evaluation_text().split("\n\n") if 400 < len(part) < 1200)
    documents = [text for text, _ in zip(paragraphs, range(DOCUMENTS), strict=False)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (exports.work / "documents.jsonl").write_text(lines, encoding="utf-8")
    counts = {
        "word": sum(len(re.split(r"\s+", text)) for text in documents),
        "byte": sum(len(text.encode()) for text in documents),
    }
    wrong = _nats(exports.control, documents)
    findings = []
    for export in exports.repaired:
        theirs, right = _lm_eval(export, exports.work), _nats(export, documents)
        for unit, count in counts.items():
            found, ours, control = theirs[f"{unit}_perplexity,none"], math.exp(right / count), math.exp(wrong / count)
            findings.append(
                Finding(
                    "lm-eval", export.name, f"{unit} perplexity, relative",
                    abs(found / ours - 1), TOLERANCE, abs(found / control - 1), f"{found:.6f} and {ours:.6f}",
                )
            )  # fmt: skip
    return findings


def _nats(export: Export, documents: list[str]) -> float:
    return sum(nats(export.folder, [PREFIX, *tokenize(text)]) for text in documents)


def _lm_eval(export: Export, work: Path) -> dict[str, Any]:
    """The results of the task, run as a user runs it."""
    out = work / "lm-eval" / export.folder.name
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--tasks", "bundled_text",
        "--model_args", f"pretrained={export.folder},dtype=float32", "--include_path", str(TASKS),
        "--output_path", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"lm_eval: {done.stderr[-800:]}")
    (file,) = out.rglob("results_*.json")
    results: dict[str, Any] = json.loads(file.read_text())["results"]["bundled_text"]
    return results
