"""A config that ties the head to the embedding, and a file that holds another head: what is stored counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import prunecomp
from prunecomp.errors import PrunecompWarning
from prunecomp.model.loader import load_decoder
from prunecomp.model.source import describe
from tests.situations.folders import TOKENS, edit_tensors, folder_of, logits, theirs

STREAMED = 260_000
"""Bytes of device memory that hold the embedding, the head and two layers."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = folder_of("llama-tied-biased", tmp_path / "base")
    head = torch.randn(101, 48, generator=torch.Generator().manual_seed(2)) / 2
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": head}))
    return folder


@pytest.mark.filterwarnings("ignore::prunecomp.errors.PrunecompWarning")
@pytest.mark.parametrize("fold", ["up", "down"])
@pytest.mark.parametrize(("dtype", "memory"), [("float32", None), ("float32", STREAMED), ("bfloat16", None)])
def test_the_export_is_the_model_of_transformers_without_the_layers(
    base: Path, fold: str, dtype: str, memory: int | None, tmp_path: Path
) -> None:
    result = prunecomp.prune(base, 2, TOKENS, fold=fold, dtype=dtype, device_memory=memory, preset="paper")
    assert (result.placement.group_size is not None) == (memory is not None)
    whole = theirs(base)
    result.apply(whole)
    got, meant = logits(theirs(result.save(tmp_path / "out"))), logits(whole)
    assert float((got - meant).norm() / meant.norm()) < 1e-5
    assert result.verified is not None


def test_it_is_told_and_seen_everywhere(base: Path) -> None:
    with pytest.warns(PrunecompWarning, match=r"holds? a head that differs from it: that one is used"):
        assert not describe(base)["tied_head"]
    plan = prunecomp.plan(base, 2)
    tied = prunecomp.plan(folder_of("llama-tied-biased", base.parent / "tied"), 2)
    assert plan.shape.outer_nbytes - tied.shape.outer_nbytes == 101 * 48 * 4
    assert torch.equal(logits(load_decoder(base).model), logits(theirs(base)))


def test_a_head_that_is_the_same_is_tied(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = folder_of("llama-tied-biased", tmp_path / "base")

    def repeat(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_tensors(folder / "model.safetensors", repeat)
    assert describe(folder)["tied_head"]
    assert load_decoder(folder).tied
    assert not [w for w in recwarn if w.category is PrunecompWarning]


def test_a_head_without_an_embedding_is_tied_the_other_way(tmp_path: Path) -> None:
    folder = folder_of("llama-tied-biased", tmp_path / "base")

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    edit_tensors(folder / "model.safetensors", rename)
    assert torch.equal(logits(load_decoder(folder).model), logits(theirs(folder)))
    out = prunecomp.prune(folder, 1, TOKENS, fold="down", preset="paper").save(tmp_path / "out")
    whole = theirs(folder)
    prunecomp.prune(folder, 1, TOKENS, fold="down", preset="paper").apply(whole)
    assert torch.allclose(logits(theirs(out)), logits(whole), atol=1e-4)
