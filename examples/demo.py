"""Prune SmolLM2-135M-Instruct by five of its 30 layers in three ways, save the best, and ask it a question.

    python examples/demo.py --out demo-out

The model comes from the Python package index; where that cannot be reached, the bundled one takes its place. Needs no
GPU. The folder given by ``--out`` is replaced once the new one is whole; ``demo.json`` in it has the table's figures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from smollm2 import fetch
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunecomp
from prunecomp.compare import Arm
from prunecomp.errors import CheckpointError
from prunecomp.io.progress import told

HERE = Path(__file__).parent
BUNDLED = HERE / "reference_model"
TEXTS = {"code": HERE / "texts" / "code.txt", "verse": HERE / "texts" / "verse.txt"}
"""Code is a kind that is calibrated on; verse is not."""
LAYERS, SAMPLES, SEQLEN, EVALUATED = 5, 24, 256, 12
"""Layers to remove; calibration windows, tokens of each, and windows of each text that perplexity is measured on."""
ARMS = {
    "one shot, nothing": Arm("bi", "none", one_shot=True),
    "Prune&Comp (paper)": Arm("bi", "scale"),
}
DEFAULT = "joint repair"
"""What is saved: layers chosen with nothing in place, then the fit that ``--repair auto`` sets beside nothing, not
judged here, to be quick."""
QUESTION = "Why is the sky blue? Answer in two sentences."
BEGINNING = "The old man looked at the"
NEW_TOKENS = 48

console, aside = Console(), Console(stderr=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    out: Path = parser.parse_args().out
    if out.exists() and not (out / "prunecomp.json").is_file():
        sys.exit(f"--out {out}: is there, and not by this demo; name another folder")
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        demonstrate(fresh)
        shutil.rmtree(out, ignore_errors=True)
        fresh.rename(out)
    except KeyboardInterrupt:
        aside.print(f"stopped; {out} is as it was")
        sys.exit(130)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)


def demonstrate(out: Path) -> None:
    """Compare, print the table, and leave the pruned model and the figures in ``out``."""
    say(1, "fetching SmolLM2-135M-Instruct (93 MB, once)")
    model = fetched()
    tokenizer = AutoTokenizer.from_pretrained(model)
    options: dict[str, Any] = {
        "samples": SAMPLES,
        "seqlen": SEQLEN,
        "dtype": "float32",  # a CPU without instructions for bfloat16 takes nine times as long in it
        "progress": told(aside),
    }
    say(2, f"pruning by {LAYERS} layers in {len(ARMS)} ways, measuring on {len(TEXTS)} texts")
    texts = {name: windows(tokenizer, path) for name, path in TEXTS.items()}
    compared = prunecomp.compare(model, [LAYERS], None, arms=list(ARMS.values()), eval=texts, **options)
    say(3, "pruning with a repair fitted to the dense model, saving and measuring it")
    result = prunecomp.prune(model, LAYERS, repair="joint", **options)
    result.save(out)
    ours = {
        name: prunecomp.evaluate(out, text, dtype="float32", progress=options["progress"])
        for name, text in texts.items()
    }
    say(4, "loading dense and pruned with transformers, and letting both answer")
    dense, pruned = (answer(folder, tokenizer) for folder in (model, out))

    rows = [{"model": "dense", "layers removed": [], "perplexity": compared.dense, **dense}]
    for name, arm in ARMS.items():
        measured = compared.measurement(arm, LAYERS)
        assert measured is not None
        rows.append({"model": name, "layers removed": measured.removed, "perplexity": measured.perplexity, **pruned})
    rows.append({"model": DEFAULT, "layers removed": result.removed, "perplexity": ours, **pruned})
    console.print(table_of(rows))
    console.print(answers(dense["text"], pruned["text"]))
    for row in rows[1:-1]:
        del row["text"]  # that of the model that was saved
    record = {"base": model.name, "samples": SAMPLES, "seqlen": SEQLEN, "evaluated": EVALUATED, "rows": rows}
    (out / "demo.json").write_text(json.dumps(record, indent=1) + "\n")


def say(step: int, what: str) -> None:
    aside.print(f"{step} of 4: {what}", highlight=False)


def fetched() -> Path:
    """The folder of SmolLM2, or of the bundled model where it cannot be had."""
    try:
        return fetch()
    except CheckpointError as error:
        aside.print(f"{error}: going on with the bundled model", highlight=False, soft_wrap=True)
        return BUNDLED


def windows(tokenizer: Any, path: Path) -> torch.Tensor:
    """The first windows of a text, int64 [N, S]."""
    ids = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt", verbose=False)["input_ids"][0]
    return ids[: EVALUATED * SEQLEN].view(EVALUATED, SEQLEN)


def answer(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """What the model in ``folder`` says, its parameters, and the tokens a second of ``generate``."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if tokenizer.chat_template is None:
        prompt = tokenizer(BEGINNING, return_tensors="pt")["input_ids"]
    else:
        asked = [{"role": "user", "content": QUESTION}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    speed = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    model.generate(input_ids=prompt, **speed | {"max_new_tokens": 4, "min_new_tokens": 4})  # warm
    started = time.perf_counter()
    said = model.generate(input_ids=prompt, **speed)[0, prompt.shape[1] :]
    seconds = time.perf_counter() - started
    ended = (said == tokenizer.eos_token_id).nonzero()
    text = tokenizer.decode(said[: int(ended[0])] if len(ended) else said, skip_special_tokens=True)
    parameters = sum(each.numel() for each in model.parameters())
    return {"parameters": parameters, "tokens a second": round(NEW_TOKENS / seconds, 1), "text": text.strip()}


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"perplexity, {EVALUATED} windows of {SEQLEN} tokens; verse was not calibrated on")
    for heading in ("model", "layers removed", *TEXTS, "parameters", "tokens/s"):
        table.add_column(heading)
    for row in rows:
        perplexities = (f"{row['perplexity'][name]:.2f}" for name in TEXTS)
        removed = " ".join(map(str, row["layers removed"]))
        table.add_row(
            row["model"], removed, *perplexities, f"{row['parameters'] / 1e6:.1f} M", f"{row['tokens a second']:.1f}"
        )
    return table


def answers(dense: str, pruned: str) -> Table:
    table = Table("dense", "pruned")
    table.add_row(dense.replace("[", r"\["), pruned.replace("[", r"\["))
    return table


if __name__ == "__main__":
    main()
