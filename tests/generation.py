"""Generation with a cache, held to whole forward passes."""

from __future__ import annotations

from typing import Any

import torch

from tests.tolerances import ROUNDINGS


@torch.no_grad()
def assert_the_cache_holds(model: Any, prompt: torch.Tensor, count: int) -> None:
    """The logits of each generated token are those of a forward pass over all before it, without a cache.

    Logits and not tokens: of two that are equal but for rounding either may be taken. A router near a tie may send a
    token elsewhere, so it is the median over tokens that rounding bounds; a cache that is misindexed spoils all.
    """
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt),  # else a prompt's own 0 would count as padding
        use_cache=True, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert out.sequences.shape == (prompt.shape[0], prompt.shape[1] + count)
    got = torch.stack(out.logits, dim=1).double()
    whole = model(input_ids=out.sequences, use_cache=False).logits[:, prompt.shape[1] - 1 : -1].double()
    errors = (got - whole).norm(dim=-1) / whole.norm(dim=-1)
    assert float(errors.median()) < ROUNDINGS * torch.finfo(torch.float32).eps
