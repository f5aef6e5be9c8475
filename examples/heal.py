"""Heal a pruned model with LoRA: a few minutes of cross entropy and of distillation from the dense model it came from.

    prunecomp prune MODEL --layers 8 --out pruned
    pip install peft
    python examples/heal.py pruned --base MODEL --out healed

What is distilled are the dense model's next-token probabilities, and the direction of the residual stream above every
layer: ``layer_map`` in the export's config says which layer of the dense model each one was. Directions, since folded
scales leave the stream at another length. Trains on the text given, by default the mixture that prunecomp calibrates
on; prints perplexities before and after on a kind of text that is like it and on one that is not, and writes a
checkpoint in the dtype of the export. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunecomp

HERE = Path(__file__).parent
MIXTURE = sorted((Path(prunecomp.__file__).parent / "data" / "texts").glob("*.txt"))
TEXTS = {"code (trained on such)": HERE / "texts" / "code.txt", "verse (not)": HERE / "texts" / "verse.txt"}


def loss_of(student: Any, teacher: Any, layer_map: list[int], tokens: torch.Tensor) -> torch.Tensor:
    """Nats a token, of tokens [B, S]: half cross entropy with the text, half KL divergence from the dense model, and a
    tenth of the mean of 1 - cos between the streams above each layer."""
    with torch.no_grad():
        taught = teacher(tokens, output_hidden_states=True)
    learnt = student(tokens, output_hidden_states=True)
    log_probs = learnt.logits[:, :-1].flatten(0, 1).log_softmax(-1)  # [B (S-1), V]
    text = F.nll_loss(log_probs, tokens[:, 1:].flatten())
    wanted = taught.logits[:, :-1].flatten(0, 1).log_softmax(-1)
    dense = F.kl_div(log_probs, wanted, reduction="batchmean", log_target=True)
    # hidden_states[i] enters layer i; the last is behind the final norm, and is told by the probabilities.
    streams = [
        1 - F.cosine_similarity(learnt.hidden_states[new + 1], taught.hidden_states[old + 1], dim=-1).mean()
        for new, old in enumerate(layer_map[:-1])
    ]
    return 0.5 * text + 0.5 * dense + 0.1 * torch.stack(streams).mean()


def train(model: Any, teacher: Any, layer_map: list[int], windows: torch.Tensor, given: argparse.Namespace) -> int:
    """AdamW over windows [N, S] in order, the rate falling to zero over the time or steps that are given; how many
    steps it was."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=given.rate, weight_decay=0.0)
    started, step = time.perf_counter(), 0
    while True:
        done = max((time.perf_counter() - started) / (60 * given.minutes), step / given.steps)
        if done >= 1:
            return step
        for group in optimizer.param_groups:
            group["lr"] = given.rate * min((step + 1) / 5, 1 - done)
        rows = [(step * given.batch + row) % len(windows) for row in range(given.batch)]
        loss = loss_of(model, teacher, layer_map, windows[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        print(f"\rstep {step}, loss {loss.item():.3f}, {time.perf_counter() - started:.0f} s", end="", flush=True)


def perplexities(model: Any, tokenizer: Any, given: argparse.Namespace) -> list[float]:
    """On the first windows of each text."""
    texts = [windows_of(text, tokenizer, given.seqlen)[: given.windows] for text in TEXTS.values()]
    return [prunecomp.evaluate(model, windows) for windows in texts]


def windows_of(text: Path, tokenizer: Any, seqlen: int) -> torch.Tensor:
    """A text file in windows one after another, [N, S]; a remainder is dropped."""
    ids = torch.tensor(tokenizer(text.read_text(encoding="utf-8"))["input_ids"])
    return ids[: len(ids) // seqlen * seqlen].reshape(-1, seqlen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pruned", type=Path, help="an export of prunecomp")
    parser.add_argument("--base", help="the dense model; by default where prunecomp.json says that it was")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", default=MIXTURE, help="text files to train on")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, at most")
    parser.add_argument("--steps", type=int, default=1000, help="at most")
    parser.add_argument("--batch", type=int, default=4, help="windows a step")
    parser.add_argument("--seqlen", type=int, default=256, help="tokens a window")
    parser.add_argument("--windows", type=int, default=12, help="of each text, to measure perplexity on")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"--out {given.out}: is there; name another folder")
    record = json.loads((given.pruned / "prunecomp.json").read_text(encoding="utf-8"))
    base, layer_map = given.base or record["model"], record["layer_map"]

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(given.pruned)
    teacher = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    student = AutoModelForCausalLM.from_pretrained(given.pruned)
    stored, student = student.dtype, student.float().eval()
    windows = torch.cat([windows_of(text, tokenizer, given.seqlen) for text in given.text])
    windows = windows[torch.randperm(len(windows))]
    rows = {"dense": perplexities(teacher, tokenizer, given), "pruned": perplexities(student, tokenizer, given)}
    model: Any = get_peft_model(
        student, LoraConfig(r=given.rank, lora_alpha=2 * given.rank, target_modules="all-linear")
    )
    started = time.perf_counter()
    steps = train(model, teacher, layer_map, windows, given)
    seconds = time.perf_counter() - started
    healed = model.merge_and_unload().eval().to(stored)
    rows["healed"] = perplexities(healed.float(), tokenizer, given)
    healed.to(stored).save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)

    table = Table(title=f"perplexity; {steps} steps of {given.batch} x {given.seqlen} tokens in {seconds:.0f} s")
    for heading in ("", *TEXTS):
        table.add_column(heading, justify="right" if heading else "left")
    for name, measured in rows.items():
        table.add_row(name, *(f"{value:.2f}" for value in measured))
    print()
    Console().print(table)


if __name__ == "__main__":
    main()
