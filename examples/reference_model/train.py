"""Train the reference model: a small Llama-architecture language model, from one text file.

    python train.py data/train.txt --out model --valid data/evaluation.txt --tokens 16e6

Writes the tokenizer, the weights (bfloat16 safetensors), ``loss.csv`` and ``loss.png`` into ``--out``. The run is
seeded, and the batch of a step depends on the seed and the step alone, so a run that was stopped goes on where
``--work`` has its last state. The learning rate is warmed up, held, and lowered over the last fifth of the tokens;
a stopped run may be resumed with another ``--tokens``, which only moves the point where lowering begins.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 4096
CONTEXT = 512
END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(text: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of ``VOCAB_SIZE`` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train([str(text)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=CONTEXT,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: Path, cache: Path) -> np.ndarray:
    """Token ids of a file, uint16, kept in ``cache``; paragraphs are encoded one by one to bound memory."""
    if not cache.exists():
        paragraphs = text.read_text(encoding="utf-8").splitlines(keepends=True)
        batches = (paragraphs[i : i + 4096] for i in range(0, len(paragraphs), 4096))
        ids = [np.asarray(e.ids, np.uint16) for b in batches for e in tokenizer.backend_tokenizer.encode_batch(b)]
        np.save(cache, np.concatenate(ids))
    return np.load(cache, mmap_mode="r")


def build_model() -> LlamaForCausalLM:
    """16 layers of width 192 with three query heads on one key-value head: 7.9 M parameters, untied head."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=16,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.02,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    # Writers start smaller with depth (GPT-2's rule), so that the residual stream does not grow at the start.
    for layer in model.model.layers:
        for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
            writer.weight.data /= math.sqrt(2 * config.num_hidden_layers)
    return model


def build_optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, head and norm gains."""
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up over 2 % (at least 20 steps), hold, lower linearly to 5 % over the last fifth."""
    warm = min(1.0, (step + 1) / max(20, 0.02 * steps))
    lowered = min(1.0, (steps - step) / (0.2 * steps))
    return peak * warm * max(0.05, lowered)


def draw_batch(ids: np.ndarray, batch: int, seed: int, step: int) -> torch.Tensor:
    """``batch`` windows of ``CONTEXT`` tokens, int64, chosen by (seed, step) alone."""
    starts = np.random.default_rng((seed, step)).integers(0, len(ids) - CONTEXT, size=batch)
    return torch.from_numpy(np.stack([ids[s : s + CONTEXT] for s in starts]).astype(np.int64))


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, ids: np.ndarray, device: torch.device, windows: int = 32) -> float:
    """Mean loss (nats a token) over the first windows of a held-out text."""
    count = min(windows, len(ids) // CONTEXT)
    tokens = torch.from_numpy(ids[: count * CONTEXT].astype(np.int64)).view(count, CONTEXT).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        return sum(float(model(input_ids=t, labels=t).loss) * len(t) for t in tokens.split(8)) / count


def plot_losses(log: Path, image: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = list(csv.DictReader(log.open()))
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for column in ("train_loss", "valid_loss"):
        points = [(float(r["tokens"]) / 1e6, float(r[column])) for r in rows if r[column]]
        axes.plot(*zip(*points, strict=True), label=column.replace("_", " "))
    axes.set(xlabel="tokens seen (millions)", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(image, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="training text, UTF-8")
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--work", type=Path, help="folder for token cache and resume state (default: OUT.work)")
    parser.add_argument("--valid", type=Path, help="held-out text, watched and never trained on")
    parser.add_argument("--tokens", type=float, default=16e6)
    parser.add_argument("--batch", type=int, default=8, help="windows a step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the model: about 1.4x on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    work: Path = options.work or options.out.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    if (work / "tokenizer").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    else:
        tokenizer = train_tokenizer(options.text)
        tokenizer.save_pretrained(work / "tokenizer")
    ids = encode(tokenizer, options.text, work / "train.npy")
    valid = encode(tokenizer, options.valid, work / "valid.npy") if options.valid else None
    print(f"{len(ids):,} training tokens", flush=True)

    torch.manual_seed(options.seed)
    model = build_model().to(device)
    print(f"{model.num_parameters():,} parameters on {device}", flush=True)
    if options.compile:
        model.compile()
    optimizers = build_optimizers(model, options.lr)
    log, state_file, step = work / "loss.csv", work / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]
        kept = [row for row in csv.reader(log.open()) if row[0] == "step" or int(row[0]) <= step]
        print(f"resumed at step {step}", flush=True)
    else:
        kept = [["step", "tokens", "lr", "train_loss", "valid_loss", "tokens_per_second"]]
    with log.open("w", newline="") as stream:
        csv.writer(stream).writerows(kept)

    tokens_a_step = options.batch * CONTEXT
    steps = max(1, int(options.tokens // tokens_a_step))
    losses: list[float] = []
    started = time.perf_counter()
    while step < steps:
        lr = learning_rate(step, steps, options.lr)
        batch = draw_batch(ids, options.batch, options.seed, step).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss.item())
        if step % 20 == 0 or step == steps:
            checkpoint = step % 200 == 0 or step == steps
            watched = f"{evaluate(model, valid, device):.4f}" if valid is not None and checkpoint else ""
            rate = len(losses) * tokens_a_step / (time.perf_counter() - started)
            row = [step, step * tokens_a_step, f"{lr:.6f}", f"{np.mean(losses):.4f}", watched, f"{rate:.0f}"]
            with log.open("a", newline="") as stream:
                csv.writer(stream).writerow(row)
            print(*row, flush=True)
            if checkpoint:
                saved = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step}
                torch.save(saved, state_file.with_suffix(".tmp"))
                state_file.with_suffix(".tmp").replace(state_file)
            losses.clear()
            started = time.perf_counter()

    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "loss.csv").write_text(log.read_text())
    plot_losses(log, options.out / "loss.png")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
