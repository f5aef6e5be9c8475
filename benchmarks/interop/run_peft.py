"""LoRA steps with peft on an export: adapters go on every layer that is left, learn, and leave the base as it is."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from benchmarks.interop.exports import MODEL, SEQLEN, Export, Exports, load, logits, tokenize, windows
from benchmarks.interop.report import Finding

STEPS = 8
BATCH = 2
MODULES_A_LAYER = 7  # q, k, v, o, gate, up, down


def run(exports: Exports) -> list[Finding]:
    return [finding for export in exports.repaired for finding in _check(export, exports.work)]


def _check(export: Export, work: Path) -> list[Finding]:
    torch.manual_seed(0)
    base = load(export.folder)
    before = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    wanted = base.config.num_hidden_layers * MODULES_A_LAYER
    losses, broken = _train(model)
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters()
        if "lora_" not in name
    }
    changed = sum(name not in after or not torch.equal(after[name], tensor) for name, tensor in before.items())
    folder = work / "peft" / export.folder.name
    model.save_pretrained(str(folder))
    trained = _logits(model)
    reloaded = _logits(PeftModel.from_pretrained(load(export.folder), folder))

    def finding(
        compared: str, error: float, tolerance: float, control: float | None = None, values: str = ""
    ) -> Finding:
        return Finding("peft", export.name, compared, error, tolerance, control, values)

    return [
        finding("linear modules without an adapter", wanted - len(adapted), 0, None, f"{len(adapted)} have one"),
        finding("adapter tensors with no gradient, or one not finite", broken, 0),
        finding(
            f"loss after {STEPS} steps over loss before", losses[-1] / losses[0], 0.99, 1.0,
            f"{losses[0]:.4f} to {losses[-1]:.4f}",
        ),
        finding("tensors of the base that changed", changed, 0, None, f"{len(before)} tensors"),
        finding(
            "logits of the adapter saved and loaded again, largest difference",
            float((reloaded - trained).abs().max()), 0, float((reloaded - logits(export.folder)).abs().max()),
        ),
    ]  # fmt: skip


def _train(model: PeftModel) -> tuple[list[float], int]:
    """Losses on one batch, before each step and after the last; how many adapter tensors ever had a bad gradient."""
    ids = tokenize((MODEL / "calibration.txt").read_text(encoding="utf-8"))[: BATCH * SEQLEN]
    batch = torch.tensor(ids).reshape(BATCH, SEQLEN)
    adapter = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(adapter.values(), lr=2e-3)
    losses: list[float] = []
    broken: set[str] = set()
    model.train()
    for step in range(STEPS + 1):
        loss = model(input_ids=batch, labels=batch).loss
        losses.append(float(loss))
        if step == STEPS:
            break
        optimizer.zero_grad()
        loss.backward()
        broken |= {n for n, p in adapter.items() if p.grad is None or not math.isfinite(float(p.grad.norm()))}
        optimizer.step()
    model.eval()
    return losses, len(broken)


def _logits(model: PeftModel) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model.eval()(input_ids=windows()).logits
    return result
