"""Metrics that run layers apart or backward, on every family, against the whole model as transformers runs it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

import prunecomp
from prunecomp.model.families import families
from prunecomp.model.source import open_source
from prunecomp.model.stack import LayerStack
from tests.families.configs import FAMILIES
from tests.families.test_families import build
from tests.models import draw_tokens

ROUNDING = 1e-4
"""Both sides are in float32, and expert sums and gradients are added in another order: some hundred roundings of 6e-8,
amplified a few times by norms of random gains."""


def loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits[:-1].float(), tokens[1:])


@pytest.mark.parametrize("case", FAMILIES)
def test_taylor_is_a_backward_pass_through_the_whole_model(case: str, generator: torch.Generator) -> None:
    model = build(case)
    tokens = draw_tokens(model, generator, windows=2, seqlen=14)
    scores = prunecomp.score(model, tokens, metric="taylor").scores
    products: dict[str, torch.Tensor] = {}
    model.requires_grad_()
    for window in tokens:
        model.zero_grad()
        loss(model(input_ids=window[None], use_cache=False).logits[0], window).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                products[name] = products.get(name, 0) + (parameter * parameter.grad).detach().double()
    layers = families.find(model.config.model_type).layers
    for layer in range(8):
        expected = sum(
            float(product.abs().sum())
            for name, product in products.items()
            if name.startswith(f"{layers}.{layer}.") and not name.endswith("bias")
        )
        assert scores[layer] == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("case", FAMILIES)
def test_ppl_is_the_loss_without_the_layer(case: str, generator: torch.Generator) -> None:
    model = build(case)
    tokens = draw_tokens(model, generator, windows=2, seqlen=14)
    scores = prunecomp.score(model, tokens, metric="ppl").scores
    model_source: Any = open_source(model, dtype="auto", device="cpu", tokenizer=None, allow_pickle=False)
    decoder = model_source.load()
    with decoder.evaluating():
        for layer in range(8):
            logits = decoder.logits(decoder.run(LayerStack.dense(8).remove(layer, 1.0), tokens))
            expected = torch.stack([loss(row, window) for row, window in zip(logits, tokens, strict=True)]).mean()
            assert scores[layer] == pytest.approx(float(expected), rel=ROUNDING)
