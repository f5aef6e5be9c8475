"""What a chat model can still do with 1, 2, 3, 5 and 8 layers gone, unrepaired and repaired: the capability profile.

``python -m benchmarks.bench_profile MODEL [--items 24] [--out benchmarks/results/real]`` writes ``profile.json`` and
``profile.md``. One pruning run an arm, stopped at each number of layers; all models share the dense one's answers.
"""

from __future__ import annotations

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunecomp
from prunecomp.data.sources import read_source
from prunecomp.data.tokens import Tokenizer
from prunecomp.data.windows import Windows, consecutive_windows, draw_windows
from prunecomp.evaluation.agreement import Standing
from prunecomp.evaluation.profile import Named, capabilities
from prunecomp.io.plain import json_text
from prunecomp.model.source import open_source
from prunecomp.model.stack import LayerStack
from prunecomp.pruning.inputs import MIXTURE
from prunecomp.pruning.language import language_of
from prunecomp.repair import RIDGE, repair
from prunecomp.report.profile import profile_markdown

TEXTS = Path(__file__).parent.parent / "examples" / "texts"
STOPS = (1, 2, 3, 5, 8)
ARMS = {"nothing": ("none", "none"), "scale": ("scale", "none"), "joint fit": ("scale", "joint")}
"""The compensation while layers are chosen, and the repair at each stop."""
EVALUATION = ("verse.txt", "code.txt")
SAMPLES, SEQLEN, EVALUATED = 32, 256, 12


def windows_of(tokenizer: Tokenizer, vocab_size: int, file: Path, drawn: bool) -> Windows:
    source = read_source(str(file), tokenizer, vocab_size)
    if drawn:
        return draw_windows(source, SAMPLES, SEQLEN, 0)
    return consecutive_windows(source, SEQLEN).take(slice(0, EVALUATED))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "real")
    given = parser.parse_args()
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    read = Tokenizer(lambda: tokenizer)
    size = model.config.vocab_size
    calibration = windows_of(read, size, MIXTURE, drawn=True)
    others, standing = [], None
    for name, (compensation, kind) in ARMS.items():
        pruner = prunecomp.pruner_for(model, calibration.tokens, metric="bi", compensation=compensation)
        if standing is None:
            standing = Standing(pruner.decoder, LayerStack.dense(pruner.decoder.num_layers), pruner.placement)
        while len(pruner.removed) < STOPS[-1]:
            scores = pruner.score()
            pruner.remove(min(scores, key=lambda layer: (scores[layer], layer)))
            if len(pruner.removed) in STOPS:
                stack = pruner.stack
                if kind != "none":
                    stack, _ = repair(standing.decoder, calibration, standing.placement, stack, kind, RIDGE)
                others.append(
                    Named(f"{name}, N = {len(pruner.removed)}", Standing(standing.decoder, stack, standing.placement))
                )
        print(name, pruner.removed, f"{time.perf_counter() - started:.0f} s", flush=True)
    assert standing is not None
    others.sort(key=lambda one: len(one.standing.stack.removed))
    chosen = time.perf_counter() - started
    model_source = open_source(model, dtype="auto", device="auto", tokenizer=tokenizer, allow_pickle=False)
    language = language_of(model_source, standing.placement)
    found = capabilities(
        standing, others, {file: windows_of(read, size, TEXTS / file, drawn=False) for file in EVALUATION},
        language if isinstance(language, str) else {standing.decoder: language}, items=given.items,
    )  # fmt: skip
    record = {
        "model": given.model.name,
        "calibration": {
            "files": [text.name for text in MIXTURE],
            "windows": SAMPLES, "seqlen": SEQLEN, "digest": calibration.digest,
        },
        "metric": "bi", "dtype": "float32", "threads": torch.get_num_threads(), "machine": platform.processor(),
        "versions": {name: version(name) for name in ("prunecomp", "torch", "transformers")},
        "seconds": {"choosing": chosen, "all": time.perf_counter() - started},
        **found.record(),
    }  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "profile.json").write_text(json_text(record) + "\n", encoding="utf-8")
    (given.out / "profile.md").write_text(profile_markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()
