"""For callers that hold a model: pruned in place and put back, cut without a fold, and loops that own their data."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel
from transformers import AutoConfig, AutoModelForCausalLM

import prunecomp
from prunecomp.errors import CheckpointError, OptionError, PrunecompWarning
from tests.models import CASES, build, draw_tokens
from tests.situations.data import model as small
from tests.situations.data import save

TOKENS = torch.randint(0, 101, (4, 16), generator=torch.Generator().manual_seed(4))


def logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits  # type: ignore[no-any-return]


def everything(model: Any) -> dict[str, Any]:
    """All that a caller may look at: bits, numbers of layers, and what the configs say."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "numbers": [module.layer_idx for module in model.modules() if isinstance(getattr(module, "layer_idx", 0), int)
                    and hasattr(module, "layer_idx")],
        "config": {**model.config.to_dict(), "name": model.config._name_or_path},
        "generation": model.generation_config.to_dict(),
        "path": model.name_or_path,
    }  # fmt: skip


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["tensors"].keys() == other["tensors"].keys()
    for name, tensor in one["tensors"].items():
        assert torch.equal(tensor, other["tensors"][name]), name
    assert {k: v for k, v in one.items() if k != "tensors"} == {k: v for k, v in other.items() if k != "tensors"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("repair", ["none", "refit"])
def test_applied_is_the_pruned_model_and_then_what_it_was(case: str, repair: str) -> None:
    model = build(case)
    model.generation_config.dola_layers = [1, 3]
    before, dense = everything(model), logits(model)
    result = prunecomp.prune(model, 2, TOKENS, repair=repair)
    copied = copy.deepcopy(model)
    result.apply(copied)
    with result.applied(model) as pruned:
        assert pruned is model
        assert torch.equal(logits(model), logits(copied))
        assert model.config.num_hidden_layers == 4
        assert model.generation_config.dola_layers is None
    assert_same(before, everything(model))
    assert torch.equal(logits(model), dense)
    with pytest.raises(ZeroDivisionError), result.applied(model):
        raise ZeroDivisionError
    assert_same(before, everything(model))


def test_apply_leaves_nothing_behind_that_points_at_the_dense_model(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    prunecomp.prune(model, 2, TOKENS, preset="paper").apply(model)
    assert not [path for path in (model.config._name_or_path, model.name_or_path) if path]
    assert str(tmp_path) not in repr(model.config) + repr(model.generation_config) + model.config.to_json_string()
    model.save_pretrained(tmp_path / "pruned")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert torch.equal(logits(again), logits(model))


def test_an_export_of_a_model_object_has_the_tokenizer_of_its_parent(tmp_path: Path) -> None:
    """As it is, also after the config was made to forget where it came from."""
    folder = save(small(), tmp_path / "dense")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    model = AutoModelForCausalLM.from_pretrained(folder)
    result = prunecomp.prune(model, 1, TOKENS, preset="paper")
    result.apply(model)
    out = result.save(tmp_path / "out")
    for file in [*folder.glob("tokenizer*"), folder / "chat_template.jinja"]:
        assert (out / file.name).read_bytes() == file.read_bytes()
    for number, name in enumerate(("", "nobody/nothing", "no such folder", str(tmp_path))):
        orphan = build("llama")
        orphan.config._name_or_path = name
        with pytest.warns(PrunecompWarning, match="the export has no tokenizer: .* give tokenizer="):
            prunecomp.prune(orphan, 1, TOKENS, preset="paper").save(tmp_path / f"orphan-{number}")


def test_a_result_is_saved_and_applied_again_after_apply(tmp_path: Path) -> None:
    model = build("llama")
    other, dense = copy.deepcopy(model), everything(model)
    result = prunecomp.prune(model, 2, TOKENS, preset="paper")
    result.save(tmp_path / "before")
    result.apply(model)
    applied = everything(model)
    result.save(tmp_path / "after")
    assert_same(applied, everything(model))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    result.apply(other)
    assert torch.equal(logits(other), logits(model))
    with pytest.raises(OptionError, match="has been pruned in place already"):
        result.apply(model)
    assert_same(applied, everything(model))
    assert dense["config"]["num_hidden_layers"] == 6


def test_a_result_is_saved_while_it_is_applied(tmp_path: Path) -> None:
    model = build("llama")
    dense = everything(model)
    result = prunecomp.prune(model, 2, TOKENS, preset="paper")
    result.save(tmp_path / "before")
    with result.applied(model):
        applied = everything(model)
        result.save(tmp_path / "within")
        assert_same(applied, everything(model))
    assert_same(dense, everything(model))
    assert (tmp_path / "within" / "model.safetensors").read_bytes() == (
        tmp_path / "before" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_cut_and_pruned_config_are_the_structure_of_an_export(tmp_path: Path, case: str) -> None:
    model, tokens = build(case), TOKENS
    out = prunecomp.prune(model, 3, tokens, metric="given", given=[4, 1, 2], compensation="none", preset="paper").save(
        tmp_path / "out"
    )
    config = prunecomp.pruned_config(model.config, [1, 2, 4])
    assert model.config.num_hidden_layers == 6, "the given one is left alone"
    written = AutoConfig.from_pretrained(out)
    left_open = {"architectures": None, "dtype": None, "_name_or_path": ""}
    assert {**config.to_dict(), **left_open} == {**written.to_dict(), **left_open}
    assert config.layer_map == [0, 3, 5]
    whole = copy.deepcopy(model)
    prunecomp.cut(whole, {4, 1, 2})
    assert torch.equal(logits(whole), logits(AutoModelForCausalLM.from_pretrained(out)))
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(copy.deepcopy(model.config))
    prunecomp.cut(skeleton, [1, 2, 4])
    assert {n: t.shape for n, t in skeleton.state_dict().items()} == {n: t.shape for n, t in whole.state_dict().items()}


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ([6], r"removed 6: the model has layers 0 to 5"),
        (range(6), "one must stay"),
        ([-1], "removed -1: give at least 0"),
        ("123", "give layer numbers as a list"),
    ],
)
def test_layers_that_cannot_be_cut(removed: Any, message: str) -> None:
    model = build("llama")
    before = everything(model)
    for call in (lambda: prunecomp.cut(model, removed), lambda: prunecomp.pruned_config(model.config, removed)):
        with pytest.raises(OptionError, match=message):
            call()
    assert_same(before, everything(model))


def test_the_layer_map_is_recorded_and_follows_the_model_it_was_made_from(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "dense")
    folder, maps = tmp_path / "dense", []
    for number, given in enumerate(([5, 1], [3], [0])):
        out = tmp_path / str(number)
        prunecomp.prune(folder, len(given), TOKENS, metric="given", given=given, preset="paper").save(out)
        maps.append(json.loads((out / "config.json").read_text())["layer_map"])
        assert json.loads((out / "prunecomp.json").read_text())["layer_map"] == maps[-1]
        assert AutoConfig.from_pretrained(out).layer_map == maps[-1]
        folder = out
    assert maps == [[0, 2, 3, 4], [0, 1, 2], [1, 2]]


LOOPS: dict[str, Callable[[Any], Any]] = {
    "by name": lambda model: [model(input_ids=TOKENS[:2]), model(input_ids=TOKENS[2:])],
    "by place": lambda model: [model(row[None]) for row in TOKENS],
    "with a loss": lambda model: model(input_ids=TOKENS, labels=TOKENS).loss.item(),
    "of the backbone": lambda model: model.model(input_ids=TOKENS),
    "that generates nothing": lambda model: model.generate(TOKENS, max_new_tokens=1, do_sample=False),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_tokens_of_a_forward_loop(loop: str) -> None:
    model = build("llama")
    before, ran = everything(model), []
    hooks = [layer.register_forward_hook(lambda *_: ran.append(1)) for layer in model.model.layers]
    batches = prunecomp.tokens_of(model, LOOPS[loop])
    assert not ran, "no layer was run"
    for hook in hooks:
        hook.remove()
    assert torch.equal(torch.cat([batch["input_ids"] for batch in batches]), TOKENS)
    assert_same(before, everything(model))
    assert prunecomp.score(model, batches).scores == prunecomp.score(model, TOKENS).scores


def test_tokens_of_keeps_the_mask_and_says_what_gives_none() -> None:
    model = build("llama")
    mask = torch.ones_like(TOKENS)
    mask[1, :9] = 0
    batches = prunecomp.tokens_of(model, lambda model: model(input_ids=TOKENS, attention_mask=mask))
    assert prunecomp.collect(model, batches).tokens == int(mask.sum())
    with pytest.raises(OptionError, match="it gives the model no input_ids"):
        prunecomp.tokens_of(model, lambda model: model(inputs_embeds=torch.ones(1, 4, 48)))
    with pytest.raises(OptionError, match="it never called the model"):
        prunecomp.tokens_of(model, lambda model: None)
    with pytest.raises(ZeroDivisionError):
        prunecomp.tokens_of(model, lambda model: 1 / 0)
    assert len(model.model.layers) == 6


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "DataParallel": DataParallel,
    "compiled": torch.compile,
    "both": lambda model: torch.compile(DataParallel(model)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_unwrapped(tmp_path: Path, wrapper: str) -> None:
    generator = torch.Generator().manual_seed(5)
    model = build("llama")
    tokens = draw_tokens(model, generator)
    bare, wrapped = copy.deepcopy(model), WRAPPERS[wrapper](model)
    result, plain = (
        prunecomp.prune(wrapped, 2, tokens, preset="paper"),
        prunecomp.prune(bare, 2, tokens, preset="paper"),
    )
    assert (result.removed, result.scales) == (plain.removed, plain.scales)
    name = "model.safetensors"
    assert (result.save(tmp_path / "a") / name).read_bytes() == (plain.save(tmp_path / "b") / name).read_bytes()
    result.apply(wrapped)
    plain.apply(bare)
    assert torch.equal(logits(model), logits(bare))
    assert prunecomp.evaluate(wrapped, tokens) == prunecomp.evaluate(bare, tokens)


def test_ddp_is_unwrapped() -> None:
    from torch.distributed import destroy_process_group, init_process_group
    from torch.nn.parallel import DistributedDataParallel

    model = build("llama")
    expected = prunecomp.score(model, TOKENS).scores
    init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert prunecomp.score(DistributedDataParallel(model), TOKENS).scores == expected
    finally:
        destroy_process_group()


class Adapted(nn.Module):
    """In the place of a linear map, as an adapter stands there: the map inside and a product of two beside it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))  # type: ignore[no-any-return]


def test_an_adapter_inside_is_told_before_any_work() -> None:
    model = build("llama")
    result = prunecomp.prune(model, 1, TOKENS, preset="paper")
    attention = model.model.layers[2].self_attn
    attention.q_proj = Adapted(attention.q_proj)
    for call in (
        lambda: prunecomp.prune(model, 1, "no such file", preset="paper"),
        lambda: prunecomp.evaluate(model, "no such file"),
        lambda: prunecomp.cut(model, [1]),
        lambda: result.apply(model),
    ):
        with pytest.raises(CheckpointError, match=r"an adapter inside \(model.layers.2.self_attn.q_proj\): merge it"):
            call()


def test_the_folder_of_an_adapter_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds an adapter of peft, and no model\. Its base is org/base"):
        prunecomp.prune(tmp_path, 1, TOKENS, preset="paper")


def test_what_is_a_part_of_a_model_is_told() -> None:
    model = build("llama")
    with pytest.raises(CheckpointError, match="with its head, as AutoModelForCausalLM loads it"):
        prunecomp.prune(model.model, 1, "no such file", preset="paper")
    with pytest.raises(OptionError, match="a Sequential is no model"):
        prunecomp.prune(nn.Sequential(model), 1, "no such file", preset="paper")


def test_a_revision_of_a_repository_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = save(small(), tmp_path / "m"), []

    def snapshot(repository: str, revision: str | None = None, **_: Any) -> str:
        asked.append((repository, revision))
        return str(folder)

    monkeypatch.setattr("prunecomp.model.hub.snapshot_download", snapshot)
    out = prunecomp.prune("org/name@v1.0", 1, TOKENS, preset="paper").save(tmp_path / "out")
    prunecomp.score("org/name", TOKENS)
    assert set(asked) == {("org/name", "v1.0"), ("org/name", None)}
    assert "base_model: org/name\n" in (out / "README.md").read_text()
    assert json.loads((out / "prunecomp.json").read_text())["model"] == "org/name@v1.0"


@pytest.mark.parametrize("applied", [False, True])
def test_a_model_that_was_trained_meanwhile_is_not_saved_as_what_it_was(tmp_path: Path, applied: bool) -> None:
    model = build("llama")
    result = prunecomp.prune(model, 2, TOKENS, preset="paper")
    copied = copy.deepcopy(result)
    if applied:
        result.apply(model)
    result.save(tmp_path / "before", verify=False)  # what we do to it ourselves is no training
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimiser.step()
    healed = logits(model)
    with pytest.raises(OptionError, match=r"have been changed since it was pruned.*save the model itself"):
        result.save(tmp_path / "after")
    assert torch.equal(logits(model), healed)
    copied.save(tmp_path / "copied", verify=False)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("before", "copied"))
    assert first == second
