"""What quantised checkpoints cannot do is refused by name, before any work where it can be known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import prunecomp
from prunecomp.checkpoint.writer import renamed
from prunecomp.errors import CheckpointError, FoldError, OptionError
from prunecomp.model.families import families
from prunecomp.model.loader import load_decoder
from prunecomp.model.stack import LayerStack
from tests.checkpoint.quantising import (
    AWQ,
    COMPRESSED,
    FP8,
    GPTQ,
    NESTED,
    Variant,
    change_config,
    fp8,
    quantise,
)
from tests.checkpoint.test_quantised import made
from tests.command_line import invoke
from tests.families.test_families import LOWER, pruned_by, token_errors
from tests.families.test_families import build as build_family
from tests.models import build, draw_tokens

TOKENS = torch.zeros(1, 8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"quant_method": "hqq"}, r"quantised \(hqq\), a format that is not read; .*Prune the checkpoint it was made"),
        ({"bits": 4}, r"quantised \(unnamed\)"),
        ({"quant_method": "gptq", "bits": 3}, r"GPTQ in 3 bits is not read; 2, 4, 8 are"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "GPTQ in the format marlin is not read"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "GPTQ in the format marlin is not read"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ in the version gemv is not read; gemm is"),
        ({"quant_method": "awq", "bits": 3, "version": "gemm"}, "AWQ in 3 bits is not read"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "experts in fp4 are not read"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "in the format marlin-24 is not read"),
        ({"quant_method": "compressed-tensors", "format": "dense", "sparsity_config": {"format": "sparse-bitmask"}},
         r"sparse weights \(sparse-bitmask\)"),
        ({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
    ],
)  # fmt: skip
def test_formats_that_are_not_read(saved: Callable[..., Path], stated: dict[str, Any], message: str) -> None:
    base = saved(build("llama"))
    change_config(base, quantization_config=stated)
    with pytest.raises(CheckpointError, match=message):
        prunecomp.prune(base, 1, TOKENS, preset="paper")


@pytest.mark.parametrize("repair", ["refit", "joint", "map"])
def test_a_repair_that_replaces_weights_is_refused_before_any_work(
    saved: Callable[..., Path], generator: torch.Generator, repair: str
) -> None:
    folder, _, _ = made(GPTQ["gptq-4"], saved, generator)
    with pytest.raises(FoldError, match=r"_proj.weight is quantised \(gptq\).*Use --repair none or auto"):
        prunecomp.prune(folder, 1, "no-such-file.txt", repair=repair)


def test_scales_that_are_quantised_too_take_no_fold(
    saved: Callable[..., Path], generator: torch.Generator, tmp_path: Path
) -> None:
    folder, meant, model = made(NESTED, saved, generator)
    with pytest.raises(FoldError, match=r"cannot be multiplied: its scales are quantised too.*--compensation none"):
        prunecomp.prune(folder, 1, "no-such-file.txt", preset="paper")
    decoder = load_decoder(folder)
    for name, weight in meant.items():
        assert torch.allclose(decoder.stored(name).double(), weight, rtol=2**-22, atol=0)
    result = prunecomp.prune(folder, 1, draw_tokens(model, generator), compensation="none", preset="paper")
    assert result.save(tmp_path / "out").is_dir()
    with pytest.raises(FoldError, match="its scales are quantised too"):
        pruned_by_scale(folder, draw_tokens(model, generator)).save(tmp_path / "scaled")
    assert not (tmp_path / "scaled").exists()


def pruned_by_scale(folder: Path, tokens: torch.Tensor) -> prunecomp.PruneResult:
    result = prunecomp.prune(folder, 1, tokens, metric="given", given=[2], compensation="none", preset="paper")
    result.stack = LayerStack.dense(result.stack.num_layers).remove(2, 1.5)
    return result


def test_scales_that_are_powers_of_two_take_no_fold(saved: Callable[..., Path], generator: torch.Generator) -> None:
    folder, _, _ = made(FP8["fp8-blocks"], saved, generator)
    change_config(folder, quantization_config={**FP8["fp8-blocks"].config, "scale_fmt": "ue8m0"})
    with pytest.raises(FoldError, match=r"powers of two \(scale_fmt ue8m0\)"):
        prunecomp.prune(folder, 1, "no-such-file.txt", preset="paper")


def test_a_weight_without_a_scale_takes_no_fold(
    saved: Callable[..., Path], generator: torch.Generator, tmp_path: Path
) -> None:
    folder, _, model = made(FP8["fp8-tensor"], saved, generator)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.3.mlp.down_proj.weight_scale_inv"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(FoldError, match=r"layers.3.mlp.down_proj.weight is quantised.*it has no scale of its own"):
        prunecomp.prune(folder, 1, "no-such-file.txt", preset="paper")
    prunecomp.prune(folder, 1, draw_tokens(model, generator), compensation="none", preset="paper").save(
        tmp_path / "out"
    )
    save_file({**tensors, "model.layers.3.mlp.down_proj.scale": torch.ones(())}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"is called model.layers.3.mlp.down_proj.scale; weight_scale_inv can"):
        prunecomp.prune(folder, 1, "no-such-file.txt", compensation="none", preset="paper")


def test_a_scale_that_overflows_is_refused(
    saved: Callable[..., Path], generator: torch.Generator, tmp_path: Path
) -> None:
    folder, _, model = made(AWQ["awq"], saved, generator)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.4.self_attn.o_proj.scales"][0, 0] = 60000.0
    save_file(tensors, path, metadata={"format": "pt"})
    result = prunecomp.prune(folder, 1, draw_tokens(model, generator), metric="given", given=[2], preset="paper")
    result.stack = LayerStack.dense(6).remove(2, 0.5)
    with pytest.raises(FoldError, match=r"o_proj.scales times 2 overflows torch.float16"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_patterns_that_do_not_follow_their_layers_are_refused_before_any_work(
    saved: Callable[..., Path], generator: torch.Generator
) -> None:
    folder, _, _ = made(COMPRESSED["compressed-int4"], saved, generator)
    stated = {**COMPRESSED["compressed-int4"].config, "ignore": [r"re:.*layers\.[1-2]\.mlp.*"]}
    change_config(folder, quantization_config=stated)
    with pytest.raises(CheckpointError, match="picks layers in a way"):
        prunecomp.prune(folder, 1, "no-such-file.txt", preset="paper")
    with pytest.raises(prunecomp.errors.DataError):
        prunecomp.prune(folder, 1, "no-such-file.txt", keep=[0, 1, 2], preset="paper")


def test_names_of_layers_are_renumbered_in_the_export(
    saved: Callable[..., Path], generator: torch.Generator, tmp_path: Path
) -> None:
    folder, _, model = made(FP8["fp8-blocks"], saved, generator)
    stated = {**FP8["fp8-blocks"].config, "modules_to_not_convert": ["lm_head", "model.layers.2", "model.layers.5.mlp"]}
    change_config(folder, quantization_config=stated)
    result = prunecomp.prune(folder, 2, draw_tokens(model, generator), metric="given", given=[0, 2], preset="paper")
    config = json.loads((result.save(tmp_path / "out") / "config.json").read_text())
    assert config["quantization_config"] == {**stated, "modules_to_not_convert": ["lm_head", "model.layers.3.mlp"]}


def test_a_recipe_for_mergekit_is_refused(
    saved: Callable[..., Path], generator: torch.Generator, tmp_path: Path
) -> None:
    folder, _, model = made(AWQ["awq"], saved, generator)
    result = prunecomp.prune(folder, 1, draw_tokens(model, generator), preset="paper")
    with pytest.raises(OptionError, match=r"mergekit does not read quantised weights \(awq\)"):
        result.save(tmp_path / "out", recipe=True)
    command = ["prune", str(folder), "--layers", "1", "--calibration", "none.txt", "--out", str(tmp_path / "cli")]
    refused = invoke(*command, "--recipe")
    assert refused.exit_code == OptionError.exit_code
    assert "mergekit does not read quantised weights" in " ".join(refused.stderr.split())


class StoredInBytes(torch.nn.Module):
    """A linear layer of int8 with one scale, as a library would put it into a model."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.scale = weight.abs().max() / 127
        self.weight = torch.nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight * self.scale)


def test_a_model_object_with_quantised_modules_runs_and_is_not_folded(
    generator: torch.Generator, tmp_path: Path
) -> None:
    model, plain = build("llama"), build("llama")
    for layer, other in zip(model.model.layers, plain.model.layers, strict=True):
        layer.mlp.up_proj = StoredInBytes(layer.mlp.up_proj.weight.detach())
        other.mlp.up_proj.weight.data = layer.mlp.up_proj.weight * layer.mlp.up_proj.scale
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if "up_proj" not in name}, strict=False)
    tokens = draw_tokens(model, generator)
    assert prunecomp.score(model, tokens).scores == prunecomp.score(plain, tokens).scores
    assert (prunecomp.collect(model, tokens).cosine == prunecomp.collect(plain, tokens).cosine).all()
    for metric in ("magnitude", "taylor"):
        with pytest.raises(CheckpointError, match=f"the metric {metric} needs plain ones. Give the folder"):
            prunecomp.score(model, tokens, metric=metric)
    with pytest.raises(CheckpointError, match="holds quantised weights, and a fold needs plain ones"):
        prunecomp.prune(model, 1, TOKENS, preset="paper")
    pruner = prunecomp.pruner_for(model, tokens)
    pruner.remove(2)
    with pytest.raises(CheckpointError, match="a fold needs plain ones"):
        pruner.result().save(tmp_path / "out")
    result = prunecomp.prune(model, 2, tokens, compensation="none", preset="paper")
    with pytest.raises(CheckpointError, match="a checkpoint of it needs plain ones"):
        result.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())
    result.apply(model)
    assert len(model.model.layers) == 4
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=tokens).logits).all()


def test_integers_without_a_quantization_config_are_refused(
    saved: Callable[..., Path], generator: torch.Generator
) -> None:
    folder, _, _ = made(COMPRESSED["compressed-int8"], saved, generator)
    change_config(folder, quantization_config=None)
    with pytest.raises(CheckpointError, match=r"stored in integers, and the config states no quantization_config"):
        prunecomp.prune(folder, 1, TOKENS, preset="paper")


EXPERTS = Variant({"quant_method": "fp8", "weight_block_size": [16, 16], "fmt": "e4m3"}, fp8((16, 16)), "")


@pytest.mark.parametrize("fold", ["up", "down"])
@pytest.mark.parametrize("case", ["deepseek-v3", "mixtral", "qwen3-moe"])
def test_fused_experts_are_put_together_from_quantised_parts(
    case: str, fold: str, saved: Callable[..., Path], generator: torch.Generator, tmp_path: Path
) -> None:
    folder = saved(build_family(case))
    before = load_file(folder / "model.safetensors")
    meant = quantise(folder, EXPERTS, generator)
    assert [name for name in meant if "experts.3" in name]
    plain = {name: (meant[name].float() if name in meant else tensor) for name, tensor in before.items()}
    other = tmp_path / "plain"
    other.mkdir()
    save_file({name: t.contiguous() for name, t in plain.items()}, other / "model.safetensors")
    (other / "config.json").write_text((folder / "config.json").read_text())
    change_config(other, quantization_config=None)
    decoder = load_decoder(other)
    tokens = draw_tokens(decoder.model, generator, windows=2, seqlen=14)
    assert prunecomp.score(folder, tokens).scores == prunecomp.score(other, tokens).scores
    result = pruned_by(folder, tokens, LOWER, fold)
    out = result.save(tmp_path / "out")
    layers = families.find(decoder.config.model_type).layers
    renumber = {layer: number for number, layer in enumerate(result.stack.alive)}
    stored = load_file(folder / "model.safetensors")
    assert set(load_file(out / "model.safetensors")) == {renamed(name, layers, renumber) for name in stored} - {None}
    exported = load_decoder(out, group_size=1)
    with decoder.evaluating(), exported.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
        got = exported.logits(exported.run(LayerStack.dense(exported.num_layers), tokens))
    assert float(token_errors(got, expected).median()) < 1e-4


def test_a_measured_scale_of_a_stream_that_changes_its_size_is_refused(
    saved: Callable[..., Path], generator: torch.Generator, tmp_path: Path
) -> None:
    """In OLMo 2 projections read the stream itself; in Llama norms stand before them, which the fold leaves alone."""

    def static(rows: int, columns: int, generator: torch.Generator) -> Any:
        weight = fp8(None)(rows, columns, generator)
        weight.stored["activation_scale"] = torch.rand((), generator=generator)
        return weight

    config = {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"}
    for case in ("olmo2", "smollm3"):
        folder = tmp_path / case
        model = build_family(case)
        model.save_pretrained(folder)
        quantise(folder, Variant(config, static, "weight_scale_inv"), generator)
        tokens = draw_tokens(model, generator, windows=2, seqlen=14)
        if case == "olmo2":
            with pytest.raises(
                FoldError, match="with a scale that was measured, and in OLMo 2/3 a fold changes the size"
            ):
                prunecomp.prune(folder, 1, "no-such-file.txt", preset="paper")
            prunecomp.prune(folder, 1, tokens, compensation="none", preset="paper").save(tmp_path / "none")
        else:
            pruned_by(folder, tokens, LOWER, "up").save(tmp_path / "folded")
