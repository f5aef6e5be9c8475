"""What is given as a model and is none, or not all there: told before any work."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunecomp
from prunecomp.errors import CheckpointError, OptionError
from tests.models import build
from tests.situations.folders import TOKENS, logits, theirs

RUNS: dict[str, Callable[[Any], object]] = {
    "prune": lambda model: prunecomp.prune(model, 1, "no such file", preset="paper"),
    "score": lambda model: prunecomp.score(model, "no such file"),
    "evaluate": lambda model: prunecomp.evaluate(model, "no such file"),
    "pruner_for": lambda model: prunecomp.pruner_for(model, "no such file"),
}
CHANGES: dict[str, Callable[[Any], object]] = {
    "cut": lambda model: prunecomp.cut(model, [1]),
    "apply": lambda model: prunecomp.prune(build("llama"), 1, TOKENS, preset="paper").apply(model),
}


def offloaded(path: str) -> Any:
    model = build("llama")
    model.get_submodule(path).to("meta")
    return model


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("path", ["model.layers.3", "lm_head", "model.embed_tokens", "model.layers.5.mlp.down_proj"])
def test_layers_that_are_elsewhere(run: str, path: str) -> None:
    with pytest.raises(CheckpointError, match=rf"no values here .device meta.*{path}.*Give the folder"):
        RUNS[run](offloaded(path))


def by_accelerate(way: str, folder: Path) -> tuple[Any, Any]:
    """A model, and the same with weights that accelerate fetches while it runs."""
    accelerate = pytest.importorskip("accelerate")
    model = build("llama")
    other = copy.deepcopy(model)
    if way == "cpu":
        return model, accelerate.cpu_offload(other, "cpu")
    if way == "disk":
        return model, accelerate.disk_offload(other, folder, execution_device="cpu")
    places = dict.fromkeys(("model.embed_tokens", "lm_head", "model.norm", "model.rotary_emb"), "cpu")
    places |= {f"model.layers.{number}": "disk" if number > 2 else "cpu" for number in range(6)}
    return model, accelerate.dispatch_model(other, places, main_device="cpu", offload_dir=folder)


@pytest.mark.parametrize("way", ["cpu", "disk", "both"])
def test_weights_that_accelerate_keeps_elsewhere(way: str, tmp_path: Path) -> None:
    """They are refused; the remedy that is named gives the same result as the model that never left."""
    model, away = by_accelerate(way, tmp_path)
    result = prunecomp.prune(model, 1, TOKENS, preset="paper")
    for run in (*RUNS.values(), result.apply):
        with pytest.raises(CheckpointError, match=r"no values here .*offloaded.*Give the folder.*remove_hook_from"):
            run(away)
    if way == "cpu":
        pytest.importorskip("accelerate").hooks.remove_hook_from_submodules(away)
        again = prunecomp.prune(away, 1, TOKENS, preset="paper")
        assert (again.removed, again.scales) == (result.removed, result.scales)


def test_a_result_is_not_applied_to_a_model_that_is_not_there() -> None:
    result = prunecomp.prune(build("llama"), 1, TOKENS, preset="paper")
    with pytest.raises(CheckpointError, match="no values here"):
        result.apply(offloaded("model.layers.3"))


@pytest.mark.parametrize("run", RUNS | CHANGES)
@pytest.mark.parametrize("model", [None, 5, nn.Linear(2, 2), nn.Module(), [], {"a": torch.ones(1)}], ids=repr)
def test_what_is_no_model(run: str, model: Any) -> None:
    with pytest.raises(OptionError, match="is no model: give a folder, a hub id, or a causal language model"):
        (RUNS | CHANGES)[run](model)


@pytest.mark.parametrize("run", RUNS | CHANGES)
def test_a_model_without_its_head(run: str) -> None:
    with pytest.raises(CheckpointError, match="a LlamaModel is no causal language model"):
        (RUNS | CHANGES)[run](build("llama").model)


def test_a_head_that_shares_the_memory_of_the_embedding_is_saved(tmp_path: Path) -> None:
    model = build("llama")
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.data)
    result = prunecomp.prune(model, 1, TOKENS, preset="paper")
    out = theirs(result.save(tmp_path / "out"))
    result.apply(model)
    assert torch.allclose(logits(out), logits(model), atol=1e-4)


def compiled(model: Any) -> None:
    model.model = torch.compile(model.model)


def wrapped(model: Any) -> None:
    layer = model.model.layers[1].mlp
    layer.down_proj = nn.Sequential(layer.down_proj)


def normed(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.model.layers[1].mlp.down_proj)


def biased(model: Any) -> None:
    layer = model.model.layers[1].mlp.down_proj
    layer.bias = nn.Parameter(torch.ones(layer.out_features))


def widened(model: Any) -> None:
    model.config.vocab_size += 3


def tied(model: Any) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


def stated(model: Any) -> None:
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}


CHANGED: dict[Callable[[Any], None], str] = {
    compiled: "its model.embed_tokens.weight is nothing, where",
    wrapped: "down_proj.weight is nothing, where",
    normed: "down_proj.weight is nothing, where",
    biased: r"down_proj.bias is \[\d+\], where nothing belongs",
    widened: "model.embed_tokens.weight is",
    tied: "set model.config.tie_word_embeddings = True",
    stated: "del model.config.quantization_config first",
}


@pytest.mark.parametrize("change", CHANGED, ids=lambda change: change.__name__)
def test_a_model_that_is_another_than_its_config_makes(change: Callable[[Any], None]) -> None:
    model = build("llama", tie_word_embeddings=False)
    change(model)
    with pytest.raises(CheckpointError, match=CHANGED[change]):
        prunecomp.prune(model, 1, "no such file", preset="paper")


def test_the_advice_for_one_that_is_tied_or_no_longer_quantised(tmp_path: Path) -> None:
    model = build("llama", tie_word_embeddings=False)
    tied(model)
    model.config.tie_word_embeddings = True
    stated(model)
    del model.config.quantization_config
    prunecomp.prune(model, 1, TOKENS, preset="paper").save(tmp_path / "out")


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("path", ["model.layers.2", "lm_head"])
def test_parts_in_another_dtype(run: str, path: str) -> None:
    model = build("llama")
    model.get_submodule(path).double()
    with pytest.raises(CheckpointError, match=rf"{path}.* does not run. Convert the whole of it"):
        RUNS[run](model)


@pytest.mark.parametrize("run", RUNS)
def test_weights_quantised_by_torch(run: str) -> None:
    model = build("llama")
    model.lm_head = nn.Identity()
    model.lm_head.weight = model.model.embed_tokens.forward
    with pytest.raises(CheckpointError, match="the head of this model is quantised"):
        RUNS[run](model)
