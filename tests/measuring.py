"""How far right programs are off: ``python -m tests.measuring epsilon``, of which tests/tolerances.py tells.

``epsilon`` is the error of a float32 fold, on weights like those of a quantised checkpoint, whose sizes differ most;
``rounded`` that of a fold in 16 bits, computed in float32, in units of its epsilon.
"""

from __future__ import annotations

import argparse
import copy
import os
from typing import Any

import torch

import prunecomp
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from tests.families.configs import FAMILIES
from tests.families.test_families import LOWER, token_errors
from tests.families.test_families import build as build_family
from tests.models import CASES, build, draw_tokens
from tests.seeds import VARIABLE
from tests.tolerances import error

FOLDS = ("up", "down")


def quantised(generator: torch.Generator) -> Any:
    """Each matrix a size of its own, and each block of 64 weights of every second model."""
    model = build("llama")
    blocks = bool(torch.randint(0, 2, (), generator=generator))
    for layer in model.model.layers:
        for weight in (parameter for parameter in layer.parameters() if parameter.ndim == 2):
            scale = torch.rand(-(-weight.numel() // 64) if blocks else 1, generator=generator) * 1.5 + 0.5
            size = scale.repeat_interleave(64)[: weight.numel()].view_as(weight) if blocks else scale
            weight.data = torch.randn(weight.shape, generator=generator) * size * 0.75 / weight.shape[1] ** 0.5
    return model


def logits(model: Any, tokens: torch.Tensor, fold: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the model with folded weights, and of the one with seams, both in float32."""
    result = prunecomp.prune(
        model, len(LOWER), tokens[:1, :6], metric="given", given=list(LOWER), fold=fold, preset="paper"
    )
    result.stack = LayerStack.dense(result.stack.num_layers)
    for layer, scale in LOWER.items():
        result.stack = result.stack.remove(layer, scale)
    folded = copy.deepcopy(model)
    result.apply(folded)
    decoder = Decoder(model.float())
    with decoder.evaluating():
        seamed = decoder.logits(decoder.run(result.stack, tokens))
    with torch.no_grad():
        return folded.float()(input_ids=tokens).logits, seamed


def draw(kind: str, number: int) -> float:
    torch.manual_seed(number)
    generator = torch.Generator().manual_seed(number)
    fold = FOLDS[number % 2]
    if kind == "epsilon":
        model = quantised(generator)
        return error(*logits(model, draw_tokens(model, generator), fold))
    if number % 4 < 2:
        dtype = (torch.float16, torch.bfloat16)[number // 4 % 2]
        model = build(sorted(CASES)[number // 4 % len(CASES)]).to(dtype)
        return error(*logits(model, draw_tokens(model, generator), fold)) / torch.finfo(dtype).eps
    os.environ[VARIABLE] = str(number)
    model = build_family(list(FAMILIES)[number // 4 % len(FAMILIES)]).to(torch.bfloat16)
    got, expected = logits(model, draw_tokens(model, generator, windows=2, seqlen=14), fold)
    return float(token_errors(got, expected).median()) / torch.finfo(torch.bfloat16).eps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["epsilon", "rounded"])
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    errors = sorted(draw(options.kind, options.first + number) for number in range(options.draws))
    for share in (0.5, 0.99, 0.999, 1.0):
        print(f"{share:7.1%} are below {errors[min(int(share * len(errors)), len(errors) - 1)]:.3g}")


if __name__ == "__main__":
    main()
