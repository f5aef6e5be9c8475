"""Checkpoints in all the forms they come in: what can be pruned keeps its form, what cannot is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import prunecomp
from prunecomp.errors import CheckpointError
from tests.models import build, draw_tokens

Rename = Callable[[str], str]


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file({name: t.clone() for name, t in change(load_file(path)).items()}, path, metadata={"format": "pt"})


def test_each_tensor_of_a_mixed_checkpoint_keeps_its_dtype(
    generator: torch.Generator, tmp_path: Path, saved: Callable[..., Path]
) -> None:
    model = build("llama")
    base = saved(model)

    def mix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        dtypes = [torch.float32, torch.float16, torch.bfloat16]
        return {name: t.to(dtypes[number % 3]) for number, (name, t) in enumerate(sorted(tensors.items()))}

    rewrite(base, mix)
    before = load_file(base / "model.safetensors")
    out = prunecomp.prune(base, 1, draw_tokens(model, generator), metric="given", given=[5], preset="paper").save(
        tmp_path / "out"
    )
    written = load_file(out / "model.safetensors")
    assert {t.dtype for t in written.values()} == {torch.float32, torch.float16, torch.bfloat16}
    assert all(torch.equal(t, before[name]) and t.dtype == before[name].dtype for name, t in written.items())
    cut = prunecomp.prune(base, 1, draw_tokens(model, generator), metric="given", given=[0], preset="paper").save(
        tmp_path / "cut"
    )
    for name, tensor in load_file(cut / "model.safetensors").items():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(int(parts[2]) + 1)
        assert tensor.dtype == before[".".join(parts)].dtype, name


@pytest.mark.parametrize("fold", ["up", "down"])
def test_a_head_stored_though_tied_stays_equal_to_the_embedding(
    generator: torch.Generator, tmp_path: Path, saved: Callable[..., Path], fold: str
) -> None:
    model = build("qwen2-tied")
    base = saved(model)
    rewrite(base, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(base, 2, tokens, metric="given", given=[1, 3], fold=fold, preset="paper")
    out = result.save(tmp_path / "out")
    written = load_file(out / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])
    assert AutoModelForCausalLM.from_pretrained(out).config.tie_word_embeddings


def test_tensors_that_no_layer_owns_are_copied_bit_for_bit(
    generator: torch.Generator, tmp_path: Path, saved: Callable[..., Path]
) -> None:
    model = build("llama")
    base = saved(model)
    extra = {
        "model.extra.nan": torch.tensor([0x7FC0BEEF, 0x7F800001, -1], dtype=torch.int32).view(torch.float32),
        "model.extra.packed": torch.arange(-4, 4, dtype=torch.int8).reshape(2, 4),
        "model.extra.count": torch.tensor(2**40, dtype=torch.int64),
        "model.extra.fp8": torch.arange(8, dtype=torch.uint8).view(torch.float8_e4m3fn),
    }
    rewrite(base, lambda tensors: {**tensors, **extra})
    out = prunecomp.prune(base, 2, draw_tokens(model, generator), preset="paper").save(tmp_path / "out")
    written = load_file(out / "model.safetensors")
    for name, tensor in extra.items():
        assert written[name].dtype == tensor.dtype
        assert written[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name


@pytest.mark.parametrize(
    "rename",
    [lambda name: f"language_model.{name}", lambda name: name.replace("model.", "model.language_model.")],
    ids=["before", "within"],
)
def test_tensors_under_a_prefix_that_transformers_does_not_look_under_are_refused(
    saved: Callable[..., Path], rename: Rename, generator: torch.Generator
) -> None:
    """It would run a model of random weights."""
    model = build("llama")
    base = saved(model)
    rewrite(base, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    with pytest.raises(CheckpointError, match=r"transformers finds no tensor that fits .*model\.embed_tokens\.weight"):
        prunecomp.prune(base, 2, draw_tokens(model, generator), preset="paper")
