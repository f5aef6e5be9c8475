"""What is checked: exports of the bundled model, and our own numbers of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import prunecomp

MODEL = Path(__file__).parents[2] / "examples" / "reference_model"
LAYERS = 6
SEQLEN = 512
WINDOWS = 4
UP, DOWN, LINEAR = "scale, fold up", "scale, fold down", "refit"


@dataclass(frozen=True)
class Export:
    """A checkpoint that was written, and what was done to it."""

    name: str
    folder: Path
    removed: list[int]
    scales: list[float]


@dataclass(frozen=True)
class Exports:
    """``control`` has the same layers removed and nothing put in their place. Every comparison is made with it too and
    must fail there: a check that takes it for one of ``repaired`` sees nothing."""

    repaired: list[Export]
    control: Export
    work: Path
    """A folder for what a check writes."""


def make_exports(work: Path) -> Exports:
    """Prune the bundled model once by block influence, then write the same removals in each form under ``work``."""
    options: dict[str, Any] = {"calibration": MODEL / "calibration.txt", "samples": 16, "dtype": "float32"}
    first = prunecomp.prune(MODEL, LAYERS, **options, preset="paper")
    again: dict[str, Any] = {**options, "metric": "given", "given": first.removed}

    def write(name: str, folder: str, result: prunecomp.PruneResult, recipe: bool = False) -> Export:
        return Export(name, result.save(work / folder, recipe=recipe), result.removed, result.scales)

    return Exports(
        [
            write(UP, "up", first, recipe=True),
            write(DOWN, "down", prunecomp.prune(MODEL, LAYERS, fold="down", **again, preset="paper")),
            write(LINEAR, "refit", prunecomp.prune(MODEL, LAYERS, repair="refit", **again)),
        ],
        write("no compensation", "control", prunecomp.prune(MODEL, LAYERS, compensation="none", **again)),
        work,
    )


def evaluation_text() -> str:
    return (MODEL / "evaluation.txt").read_text(encoding="utf-8")


def tokenize(text: str) -> list[int]:
    ids: list[int] = _tokenizer()(text)["input_ids"]
    return ids


@cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@cache
def windows() -> torch.Tensor:
    """The first windows of the bundled evaluation text: token ids, [N, S]."""
    ids = tokenize(evaluation_text())[: WINDOWS * SEQLEN]
    return torch.tensor(ids).reshape(WINDOWS, SEQLEN)


def load(folder: Path) -> PreTrainedModel:
    """As transformers loads it, in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model


@cache
def logits(folder: Path) -> torch.Tensor:
    """Of transformers in float32 on :func:`windows`: [N, S, V]."""
    with torch.inference_mode():
        result: torch.Tensor = load(folder)(windows()).logits
    return result


def loss(logits: torch.Tensor) -> float:
    """Nats a token of logits [N, S, V] on :func:`windows`, each standing alone."""
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), windows()[:, 1:].flatten()))


def nats(folder: Path, ids: list[int]) -> float:
    """Minus the log-likelihood of all tokens but the first, by ``prunecomp eval``."""
    perplexity = prunecomp.evaluate(folder, np.array([ids]), seqlen=len(ids), dtype="float32")
    return math.log(perplexity) * (len(ids) - 1)


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def unequal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> list[str]:
    """Names that only one has, or whose tensors differ in dtype, shape or a bit."""
    both = some.keys() & others.keys()
    differ = {n for n in both if some[n].dtype != others[n].dtype or not torch.equal(some[n], others[n])}
    return sorted((some.keys() ^ others.keys()) | differ)
