"""What a row gives does not depend on the rows that it runs with, nor on those that ran before."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import prunecomp
from prunecomp.data.windows import Windows
from prunecomp.model.decoder import Decoder
from prunecomp.pruning.pruner import Pruner

COMMON: dict[str, Any] = {
    "vocab_size": 67, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0, 4.0, 8.0, 16.0],
    "original_max_position_embeddings": 16, "factor": 6.0,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
CASES: dict[str, dict[str, Any]] = {
    "longrope": {"model_type": "phi3", "rope_parameters": LONG, "original_max_position_embeddings": 16},
    "dynamic": {"model_type": "llama", "rope_parameters": DYNAMIC, "max_position_embeddings": 16},
    "dynamic-by-layer": {
        "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 8, "max_position_embeddings": 16,
        "rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": {"rope_type": "default",
                                                                             "rope_theta": 100.0}},
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    },
}  # fmt: skip
LENGTHS = [12, 40, 30, 9, 40, 14, 35]


class PackingDecoder(Decoder):
    packs = True


def build(case: str) -> Any:
    options = {**COMMON, **CASES[case]}
    torch.manual_seed(1)
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)
    return model


def ragged(lengths: list[int]) -> np.ndarray:
    rows = np.random.default_rng(2).integers(0, 67, (len(lengths), max(lengths)))
    rows[np.arange(max(lengths)) >= np.array(lengths)[:, None]] = -1
    return rows


def alone(model: Any, rows: np.ndarray) -> float:
    """By transformers itself: a fresh state of the embeddings and one row at a time."""
    total = tokens = 0.0
    for row in rows:
        fresh = AutoModelForCausalLM.from_config(model.config, dtype=torch.float64, attn_implementation="sdpa").eval()
        fresh.load_state_dict(model.state_dict())
        ids = torch.from_numpy(row[row >= 0])[None]
        with torch.no_grad():
            total += float(fresh(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return math.exp(total / tokens)


@pytest.mark.parametrize("case", CASES)
def test_perplexity_is_that_of_each_row_alone(case: str, tmp_path: Path) -> None:
    model, rows = build(case), ragged(LENGTHS)
    expected = alone(model, rows)
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 90, dtype=torch.int64))  # what ran before is forgotten
    assert prunecomp.evaluate(model, rows) == pytest.approx(expected, rel=1e-6)
    model.save_pretrained(tmp_path / "base")
    assert prunecomp.evaluate(tmp_path / "base", rows, device_memory=300_000, disk=tmp_path) == pytest.approx(
        expected, rel=1e-6
    )
    together = prunecomp.prune(model, 1, rows, eval=rows, preset="paper")
    assert together.perplexity is not None
    assert together.perplexity["dense"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("decoder", [Decoder, PackingDecoder])
@pytest.mark.parametrize("case", CASES)
def test_statistics_are_those_of_each_row_alone(case: str, decoder: type[Decoder]) -> None:
    model, rows = build(case), ragged(LENGTHS)
    tokens, lengths = torch.from_numpy(rows.clip(0)), torch.tensor(LENGTHS)

    def cosines(windows: Windows) -> torch.Tensor:
        pruner = Pruner(decoder(model), windows)
        pruner.score()
        return torch.stack([pruner.statistics.of(layer).cosine for layer in range(4)])

    together = cosines(Windows(tokens, "test", lengths))
    for number, length in enumerate(LENGTHS):
        one = cosines(Windows(tokens[number : number + 1, :length], "one"))
        torch.testing.assert_close(together[:, number : number + 1], one, rtol=1e-6, atol=1e-7)


def test_collected_cosines_are_means_over_rows_alone() -> None:
    model, rows = build("longrope"), ragged(LENGTHS)
    together = prunecomp.collect(model, rows)
    each = [prunecomp.collect(model, rows[i : i + 1, :n]).cosine * n for i, n in enumerate(LENGTHS)]
    np.testing.assert_allclose(together.cosine, sum(each) / sum(LENGTHS), rtol=1e-6)


def test_rows_run_with_their_like() -> None:
    """Longest first, in batches of one kind each; where no embedding looks at lengths, batches stay as they were."""
    lengths = torch.tensor([40, 35, 30, 14, 12, 9, 8])
    windows = Windows(torch.zeros(7, 40, dtype=torch.int64), "test", lengths)

    def sizes(case: str) -> list[int]:
        return [batch.count for batch in windows.batches(5, kind=Decoder(build(case)).rotary.kind)]

    assert sizes("longrope") == [3, 4]
    assert sizes("dynamic") == [1, 1, 1, 4]
    assert [batch.count for batch in windows.batches(5)] == [5, 2]
    plain = Decoder(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **COMMON)))
    assert not plain.rotary.look_at_lengths
    assert [batch.count for batch in windows.batches(5, kind=plain.rotary.kind)] == [5, 2]
