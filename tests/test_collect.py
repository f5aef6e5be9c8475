"""The statistics alone, against their formulas token by token."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import prunecomp
from tests.engine.test_ragged import ragged
from tests.engine.test_streaming import needed
from tests.models import build, draw_tokens
from tests.oracles import iterative, span
from tests.tolerances import SCALE

ARRAYS = ("cosine", "angular", "norm", "scale", "norm_ratio", "least_squares", "dead_channels", "zero_rows")
SPANS = {"scale": span.magnitude_scale, "norm_ratio": span.norm_ratio, "least_squares": span.least_squares}


def check(collected: prunecomp.Collected, model: Any, sequences: list[torch.Tensor]) -> None:
    exact = copy.deepcopy(model).double()
    states = [iterative.boundary_states(exact, sequence) for sequence in sequences]
    for i in range(7):
        norms = [float(row.norm()) for one in states for row in one[i]]
        assert collected.norm[i] == pytest.approx(sum(norms) / len(norms), rel=SCALE)
        for j in range(7):
            cosines = span.cosines(states, i, j)
            angles = [math.acos(max(-1.0, min(1.0, c))) / math.pi for c in cosines]
            assert collected.cosine[i, j] == pytest.approx(sum(cosines) / len(cosines), rel=SCALE, abs=SCALE)
            # Near a cosine of 1 the angle is the root of what rounding leaves.
            tolerance = 1e-3 if i == j else 2 * SCALE
            assert collected.angular[i, j] == pytest.approx(sum(angles) / len(angles), rel=SCALE, abs=tolerance)
            for name, formula in SPANS.items():
                value = getattr(collected, name)[i, j]
                if i < j:
                    # A short sequence has channels near zero, whose ratios magnify rounding.
                    assert value == pytest.approx(formula(states, i, j), rel=10 * SCALE, abs=SCALE), name
                else:
                    assert math.isnan(value)
    assert collected.sequences == len(sequences)
    assert collected.tokens == sum(len(sequence) for sequence in sequences)
    assert not collected.zero_rows.any()
    assert not collected.dead_channels.any()


@pytest.mark.parametrize("case", ["llama-tied-biased", "qwen3"])
def test_every_pair_and_span_agrees_with_float64(generator: torch.Generator, case: str) -> None:
    model = build(case)
    tokens = draw_tokens(model, generator)
    collected = prunecomp.collect(model, tokens)
    check(collected, model, list(tokens))
    assert collected.layer_forwards == 6
    assert collected.calibration_digest == prunecomp.score(model, tokens).__dict__["calibration_digest"]


def test_padding_enters_nothing(generator: torch.Generator) -> None:
    model = build("qwen2").double()
    windows = ragged(model, generator)
    assert windows.lengths is not None
    lengths = windows.lengths.tolist()
    tokens = windows.tokens.clone()
    tokens[torch.arange(24) >= windows.lengths.unsqueeze(1)] = -1
    sequences = [row[:n] for row, n in zip(windows.tokens, lengths, strict=True)]
    check(prunecomp.collect(model, tokens), model, sequences)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_streamed_resident_and_in_memory_agree_bit_for_bit(
    generator: torch.Generator, tmp_path: Path, saved: Callable[..., Path], dtype: str
) -> None:
    model = build("mistral")
    tokens = draw_tokens(model, generator, windows=7, seqlen=33)
    base = saved(model, max_shard_size="60KB")
    calls: list[int] = []
    states = 7 * tokens.numel() * 48 * getattr(torch, dtype).itemsize  # of all windows, at all boundaries
    limit = needed(model.to(getattr(torch, dtype)), tokens, -1) + states
    streamed = prunecomp.collect(
        base, tokens, dtype=dtype, device_memory=limit, disk=tmp_path,
        progress=lambda name, total, unit: _Silent(calls, total),
    )  # fmt: skip
    resident = prunecomp.collect(base, tokens, dtype=dtype)
    held = prunecomp.collect(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), tokens)
    assert (streamed.streamed, resident.streamed, held.streamed) == (True, False, False)
    for other in (resident, held):
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(other, name), getattr(streamed, name), err_msg=name)
    assert calls == [6 * 7], "one pass over all windows"
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


class _Silent:
    def __init__(self, calls: list[int], total: int) -> None:
        calls.append(total)

    def __enter__(self) -> Callable[[int], None]:
        return lambda step: None

    def __exit__(self, *_: object) -> None:
        pass


def test_zero_rows_and_dead_channels_are_counted(generator: torch.Generator) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator, windows=2, seqlen=8)
    tokens[tokens == 9] = 10
    tokens[1, 3] = 9  # behind others: attention gives it something to write
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = 0.0
        model.model.embed_tokens.weight[:, 5] = 0.0
    collected = prunecomp.collect(model, tokens)
    assert collected.zero_rows.tolist() == [1, 0, 0, 0, 0, 0]
    assert collected.dead_channels[0].tolist() == [0, 2, 2, 2, 2, 2, 2]
    assert not collected.dead_channels[1:].any()


def test_the_record_is_strict_json(generator: torch.Generator) -> None:
    model = build("llama")
    collected = prunecomp.collect(model, draw_tokens(model, generator))
    record = json.loads(json.dumps(collected.record(), allow_nan=False))
    assert record["scale"][2][1] is None
    assert record["scale"][1][3] == collected.scale[1, 3]
    assert record["tokens"] == 5 * 24
    assert set(ARRAYS) < set(record)
