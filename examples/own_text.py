"""Have a model write text to be calibrated on: what it was trained towards, where nothing of that kind is at hand.

    python examples/own_text.py models/SmolLM2-135M-Instruct --samples 24 --tokens 256 --out own.jsonl
    prunecomp prune models/SmolLM2-135M-Instruct --layers 5 --calibration own.jsonl --out pruned

A chat model begins where a user's words would, and writes those as well as its answers, as in Magpie (Xu et al., arXiv
2406.08464); any other begins with the token that texts begin with. Sampled from the model's distribution as it is, so
that nothing is favoured. Each sample is a line ``{"text": ...}`` of the file; the same seed on the same machine gives
the same file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunecomp.pruning.journal import write_whole

MARK = "a user's words"
TOGETHER = 24
"""Samples that are written side by side."""


def beginning(tokenizer: Any) -> list[int]:
    """The tokens before a user's first words; of a model without a chat template, what a text begins with."""
    if tokenizer.chat_template:
        chat = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False)
        before, found, _ = chat.partition(MARK)
        if found and (ids := tokenizer(before, add_special_tokens=False)["input_ids"]):
            return list(ids)
    for first in (tokenizer.bos_token_id, tokenizer.eos_token_id):  # which many models put between texts
        if first is not None:
            return [first]
    raise SystemExit("the tokenizer has no token that a text begins with: calibrate on a text that you have")


@torch.no_grad()
def written(model: Any, begin: list[int], samples: int, tokens: int) -> Iterator[list[int]]:
    """Token ids of each sample, ``tokens`` long with its beginning; an end of text does not end it."""
    length = tokens - len(begin)
    for start in range(0, samples, TOGETHER):
        prompt = torch.tensor([begin] * min(TOGETHER, samples - start), device=model.device)
        found = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=length, eos_token_id=None, pad_token_id=begin[0],
        )  # fmt: skip
        print(f"{min(start + TOGETHER, samples)} of {samples} samples", flush=True)
        yield from found.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=512, help="of a sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl file")
    options = parser.parse_args()
    if options.out.suffix != ".jsonl":
        parser.error(f"--out {options.out}: give a name that ends in .jsonl")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    begin = beginning(tokenizer)
    if options.tokens <= len(begin) or options.samples < 1:
        parser.error(f"give --tokens above {len(begin)}, which a sample begins with, and --samples above 0")
    dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    if torch.cuda.is_available():
        model.to("cuda")
    model.generation_config.eos_token_id = None  # else what `generate` is given does not count
    torch.manual_seed(options.seed)
    lines = [
        json.dumps({"text": tokenizer.decode(ids[len(begin) :] if begin == [tokenizer.bos_token_id] else ids)})
        for ids in written(model, begin, options.samples, options.tokens)
    ]
    write_whole(options.out, ("\n".join(lines) + "\n").encode())
    print(f"wrote {len(lines)} samples to {options.out}")


if __name__ == "__main__":
    main()
