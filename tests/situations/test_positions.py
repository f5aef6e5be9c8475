"""Windows longer than a table of positions are refused before any work; longer than the trained context, warned of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunecomp
from prunecomp.errors import OptionError, PrunecompWarning
from tests.situations.data import command, model, save

LEARNED = {"gpt2": {}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32}}
IDS = np.arange(4000) % 97


def calls(model_source: Any, seqlen: int | None, ids: np.ndarray = IDS) -> list[Callable[[], object]]:
    """Each function that takes data."""
    options: dict[str, Any] = {"samples": 2 if ids.ndim == 1 else len(ids), "seqlen": seqlen}
    return [
        lambda: prunecomp.evaluate(model_source, ids, seqlen=seqlen),
        lambda: prunecomp.score(model_source, ids, **options),
        lambda: prunecomp.collect(model_source, ids, **options),
        lambda: prunecomp.prune(model_source, 1, ids, **options, preset="paper"),
        lambda: prunecomp.compare(model_source, [1], ids, eval=ids, **options),
    ]


@pytest.mark.parametrize("kind", LEARNED)
def test_a_window_beyond_the_table_of_positions_is_refused(tmp_path: Path, kind: str) -> None:
    built = model(kind, **LEARNED[kind])
    folder = save(built, tmp_path / "m")
    for model_source in (built, folder):
        for call in (*calls(model_source, 65), *calls(model_source, None, IDS[:650].reshape(10, 65))):
            with pytest.raises(OptionError, match="has positions for 64 tokens"):
                call()
        with pytest.raises(OptionError, match="has positions for 64 tokens"):
            prunecomp.evaluate(model_source, IDS[:100], seqlen=128)  # and too short besides
        assert prunecomp.evaluate(model_source, IDS, seqlen=64) > 1, "the whole table is used"
    with pytest.raises(OptionError, match="has positions for 64 tokens"):
        prunecomp.plan(folder, 1, seqlen=65)
    pruner = prunecomp.pruner_for(built, IDS, samples=2, seqlen=64)
    for ids in (IDS[:130].reshape(2, 65), IDS[:65]):
        with pytest.raises(OptionError, match="64"):
            pruner.loss(ids)
    result = command("eval", folder, "--eval", tmp_path / "ids.npy", "--seqlen", 128)
    assert result.exit_code == 4
    np.save(tmp_path / "ids.npy", IDS)
    result = command("eval", folder, "--eval", tmp_path / "ids.npy", "--seqlen", 128)
    assert result.exit_code == 2
    assert "--seqlen 128: the model has positions for 64 tokens" in result.stderr


def test_documents_count_as_long_as_they_are(tmp_path: Path) -> None:
    folder = save(model("gpt2"), tmp_path / "m")
    short, long = "a few words", "many words " * 80
    for name, texts in (("short", [short] * 4), ("long", [short, long])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options: dict[str, Any] = {"samples": 2, "seqlen": 128, "documents": True}
    prunecomp.score(folder, tmp_path / "short.jsonl", **options)
    with pytest.raises(OptionError, match="has positions for 64 tokens"):
        prunecomp.score(folder, tmp_path / "long.jsonl", **options)


def test_the_table_of_a_model_in_memory_counts_and_not_its_config() -> None:
    built = model("gpt2")
    built.config.max_position_embeddings = 4096
    with pytest.raises(OptionError, match="has positions for 64 tokens"):
        prunecomp.evaluate(built, IDS, seqlen=65)


def test_beyond_the_trained_context_there_is_a_warning(tmp_path: Path) -> None:
    built = model("llama")
    for call in (*calls(built, 65), *calls(built, None, IDS[:650].reshape(10, 65))):
        with pytest.warns(PrunecompWarning, match="65 tokens are longer than the 64 that the model was trained for"):
            call()
    folder = save(built, tmp_path / "m")
    with pytest.warns(PrunecompWarning, match="longer than the 64"):
        prunecomp.plan(folder, 1, seqlen=65)
    np.save(tmp_path / "ids.npy", IDS)
    result = command("eval", folder, "--eval", tmp_path / "ids.npy", "--seqlen", 65)
    assert result.exit_code == 0
    assert "warning:" in result.stderr


@pytest.mark.filterwarnings("error")
def test_within_the_context_there_is_none() -> None:
    prunecomp.evaluate(model("llama"), IDS, seqlen=64)
    prunecomp.evaluate(model("llama"), IDS)


@pytest.mark.parametrize(("kind", "raised"), [("gpt2", OptionError), ("llama", PrunecompWarning)])
@pytest.mark.filterwarnings("error::prunecomp.errors.PrunecompWarning")
def test_of_windows_that_came_as_such_the_rows_are_to_be_shorter(kind: str, raised: type[Exception]) -> None:
    built = model(kind)
    rows = IDS[:650].reshape(10, 65)
    with pytest.raises(raised, match=r"windows of 65 tokens.* give shorter rows"):
        prunecomp.evaluate(built, rows)
    prunecomp.evaluate(built, rows[:, :64])
    with pytest.raises(OptionError, match="leave out --seqlen"):
        prunecomp.evaluate(built, rows[:, :64], seqlen=32)
