"""GPT-OSS as it is published, with its experts in MXFP4: read, removed from, never folded into."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import prunecomp
from prunecomp.errors import CheckpointError, FoldError
from prunecomp.model.quantised.mxfp4 import BIAS
from prunecomp.model.source import open_source
from tests.checkpoint.quantising import change_config
from tests.families.configs import COMMON, FAMILIES
from tests.families.test_families import randomise
from tests.models import draw_tokens
from tests.seeds import seed

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
STATED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.7.mlp.router"]}


def meaning(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Number by number from the format, float64 [in, out] of one expert."""
    outputs, groups, size = blocks.shape
    meant = torch.empty(groups * 2 * size, outputs, dtype=torch.float64)
    for row in range(outputs):
        for group in range(groups):
            for place in range(size):
                for half in (0, 1):
                    bits = (int(blocks[row, group, place]) >> 4 * half) % 16
                    value = math.copysign(MAGNITUDES[bits % 8], -1.0 if bits >= 8 else 1.0)
                    power = 2.0 ** (int(scales[row, group]) - BIAS)
                    meant[group * 2 * size + 2 * place + half, row] = value * power
    return meant


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder as GPT-OSS is published, and the model that its weights mean: shared, and only read."""
    generator = torch.Generator().manual_seed(seed())
    options = {**COMMON, **FAMILIES["gpt-oss"], "hidden_size": 64, "intermediate_size": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**options), dtype=torch.float32).eval()
    randomise(model, 0.0)
    folder = tmp_path_factory.mktemp("published")
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(BIAS - 6, BIAS - 3, blocks.shape[:3], generator=generator, dtype=torch.uint8)
        tensors.update({f"{name}_blocks": blocks, f"{name}_scales": scales})
        meant = torch.stack([meaning(*pair) for pair in zip(blocks, scales, strict=True)])
        assert torch.equal(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32), meant.float())
        model.get_parameter(name).data.copy_(meant)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    change_config(folder, quantization_config=STATED)
    return folder, model


def test_a_read_gives_what_the_format_means(published: tuple[Path, Any]) -> None:
    folder, model = published
    plain = open_source(folder, dtype="auto", device="cpu", tokenizer=None, allow_pickle=False).plain_tensors()
    for name, parameter in model.named_parameters():
        assert torch.equal(plain.read(name), parameter), name


def test_layers_go_without_a_fold(published: tuple[Path, Any], generator: torch.Generator, tmp_path: Path) -> None:
    folder, model = published
    tokens = draw_tokens(model, generator, windows=3, seqlen=14)
    assert prunecomp.score(folder, tokens).scores == prunecomp.score(model, tokens).scores
    options = {"metric": "given", "given": [4, 0], "compensation": "none"}
    result = prunecomp.prune(folder, 2, tokens, **options, preset="paper")
    out = result.save(tmp_path / "out")
    assert result.verified is not None
    plain = load_file(
        prunecomp.prune(model, 2, tokens, **options, preset="paper").save(tmp_path / "plain") / "model.safetensors"
    )
    written = load_file(out / "model.safetensors")
    before = load_file(folder / "model.safetensors")
    new = "model.layers.5.mlp.experts.down_proj"
    assert torch.equal(written[f"{new}_blocks"], before["model.layers.7.mlp.experts.down_proj_blocks"])
    assert torch.equal(
        convert_moe_packed_tensors(written[f"{new}_blocks"], written[f"{new}_scales"], dtype=torch.float32), plain[new]
    )
    stated = json.loads((out / "config.json").read_text())["quantization_config"]
    assert stated["modules_to_not_convert"] == ["model.layers.*.self_attn", "model.layers.5.mlp.router"]


@pytest.mark.parametrize("compensation", ["scale", "search"])
def test_no_fold_goes_into_powers_of_two(published: tuple[Path, Any], compensation: str) -> None:
    with pytest.raises(FoldError, match=r"down_proj is quantised and cannot be multiplied: its scales are powers of"):
        prunecomp.prune(
            published[0], 1, torch.zeros(1, 8, dtype=torch.int64), compensation=compensation, preset="paper"
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, t: {}, "down_proj_blocks is there, and .*down_proj_scales is not"),
        (lambda name, t: {name: t.int()}, "down_proj_scales is stored in int32"),
        (lambda name, t: {name: t[..., None]}, r"down_proj_scales \[4, 64, 1, 1\]; experts, outputs and blocks"),
    ],
)
def test_scales_that_do_not_fit_are_told(
    published: tuple[Path, Any],
    change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]],
    message: str,
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(published[0], tmp_path / "changed")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.3.mlp.experts.down_proj_scales"
    scales = tensors.pop(name)
    save_file({**tensors, **change(name, scales)}, file)
    with pytest.raises(CheckpointError, match=message):
        prunecomp.score(folder, torch.zeros(1, 8, dtype=torch.int64))
