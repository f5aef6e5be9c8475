"""Tasks without lm-eval: which of four words follows a line of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunecomp.evaluation.language import Language
from prunecomp.evaluation.tasks import Results, Tasks

LINES = [line for line in (Path("examples") / "texts" / "verse.txt").read_text().split("\n") if len(line) > 30][:12]


class Heard(Tasks):
    """They answer from the likelihoods of the model, each in two metrics, and note who was asked."""

    asked: list[int]
    """Layers of each model, in turn."""

    def ask(self, language: Language) -> Results:
        self.asked.append(language.model.config.num_hidden_layers)
        contexts, words = zip(*(line.rsplit(" ", 1) for line in LINES[: self.limit]), strict=True)
        others = [[f" {words[(i + step) % len(words)]}" for step in range(4)] for i in range(len(words))]
        found = language.likelihoods(
            [language.encode(context) for context in contexts],
            [[language.encode_pair("x", word)[1] for word in some] for some in others],
        )
        scores: dict[str, Any] = {}
        samples: dict[str, Any] = {}
        for number, task in enumerate(self.names):
            logs = np.array([[one.log for one in some] for some in found])
            hits = (logs.argmax(axis=1) == number % 4).astype(int).tolist()
            samples[task] = [{"filter": "none", "doc_id": i, "acc": hit} for i, hit in enumerate(hits)]
            scores[task] = {"acc,none": float(np.mean(hits)), "acc_stderr,none": 0.1, "loss,none": -float(logs.mean())}
        return Results(scores, samples)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Whoever names tasks gets these."""
    asked: list[int] = []

    def of(cls: type[Tasks], text: str, shots: int | None, limit: int | None) -> Tasks:
        made = Heard(tuple(text.split(",")), shots, limit)
        object.__setattr__(made, "asked", asked)
        return made

    monkeypatch.setattr(Tasks, "of", classmethod(of))
    return asked
