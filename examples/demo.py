"""Prune the bundled model by six layers, compare with naive pruning, save the result and let it write a sentence.

    python examples/demo.py --out demo-out

Needs no network and no GPU. The folder given by ``--out`` is replaced.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunecomp
from prunecomp.report.progress import RichProgress
from prunecomp.report.tables import rounds_table

MODEL = Path(__file__).parent / "reference_model"
LAYERS = 6
PROMPT = "The old man looked at the"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    out: Path = parser.parse_args().out
    if (out / "prunecomp.json").exists():
        shutil.rmtree(out)

    console = Console()
    options = {
        "calibration": MODEL / "calibration.txt",
        "eval": MODEL / "evaluation.txt",
        "progress": RichProgress(Console(stderr=True)),
    }
    naive = prunecomp.prune(MODEL, LAYERS, one_shot=True, compensation="none", **options)
    ours = prunecomp.prune(MODEL, LAYERS, **options)
    ours.save(out)

    console.print(rounds_table(ours))
    table = Table(title="perplexity on the bundled evaluation text")
    for heading in ("model", "layers", "removed", "perplexity"):
        table.add_column(heading)
    kept = str(ours.stack.num_layers - LAYERS)
    assert naive.perplexity is not None
    assert ours.perplexity is not None
    table.add_row("dense", str(ours.stack.num_layers), "", f"{ours.perplexity['dense']:.2f}")
    table.add_row("naive: one shot, no compensation", kept, str(naive.removed), f"{naive.perplexity['pruned']:.2f}")
    table.add_row("Prune&Comp", kept, str(ours.removed), f"{ours.perplexity['pruned']:.2f}")
    console.print(table)

    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    torch.manual_seed(0)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    text = model.generate(
        input_ids=prompt["input_ids"], max_new_tokens=40, do_sample=True, temperature=0.7, top_k=40, pad_token_id=0
    )
    console.print(f"wrote {out}; the pruned model writes:", highlight=False)
    console.print(tokenizer.decode(text[0], skip_special_tokens=True), markup=False, highlight=False)


if __name__ == "__main__":
    main()
