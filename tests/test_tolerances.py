"""The tolerances let no wrong model pass: a fold that misses one writer, or is off by a hundredth, crosses them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from tests.models import build, draw_tokens
from tests.tolerances import error, relative

SEAM = 0.8
"""The mildest of the seams that are folded elsewhere."""


@pytest.mark.parametrize("writer", ["self_attn.o_proj", "mlp.down_proj"])
@pytest.mark.parametrize("layer", [2, 3, 4])
def test_a_wrong_fold_crosses_the_tolerance(generator: torch.Generator, layer: int, writer: str) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(model, 1, tokens, metric="given", given=[2], preset="paper")
    result.stack = LayerStack.dense(6).remove(2, SEAM)
    decoder = Decoder(model)
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
    pruned: Any = copy.deepcopy(model)
    result.apply(pruned)
    weight = pruned.model.layers[layer].get_submodule(writer).weight
    right = weight.detach().clone()
    errors = {}
    with torch.no_grad():
        for factor in (1.0, 1.01, SEAM):  # as it is; off by a hundredth; as if it had not been folded
            weight.copy_(right * factor)
            errors[factor] = error(pruned(input_ids=tokens).logits, expected)
    assert errors[1.0] < relative(torch.float32)
    assert errors[1.01] > 2 * relative(torch.float32)
    assert errors[SEAM] > relative(torch.bfloat16) > relative(torch.float16) > relative(torch.float32)
