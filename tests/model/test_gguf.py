"""A GGUF is the model that transformers reads out of it, dequantised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import prunecomp
from prunecomp.errors import CheckpointError, PrunecompWarning
from prunecomp.model.gguf import dequantise, gguf_types
from prunecomp.model.source import describe
from tests.command_line import invoke
from tests.models import build

LAYERS = 4
TOKENS = (np.arange(60).reshape(3, 20) * 7) % 101


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys as llama.cpp has them: the halves of a head's rotation one beside the other."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write(file: Path, model: Any, *, quantised: bool = False, architecture: str = "llama") -> None:
    config = model.config
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                values = permuted(values, heads)
        stem, _, suffix = name.rpartition(".")
        packs = quantised and values.ndim == 2 and values.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if packs else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama", hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS)


@pytest.fixture
def file(model: Any, tmp_path: Path) -> Path:
    write(tmp_path / "model.gguf", model)
    return tmp_path / "model.gguf"


def test_a_gguf_is_the_model_it_was_made_from(model: Any, file: Path, tmp_path: Path) -> None:
    dequantise(file, torch.float32, tmp_path / "folder")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    tokens = torch.from_numpy(TOKENS)
    with torch.no_grad():
        assert torch.allclose(read(input_ids=tokens).logits, model(input_ids=tokens).logits, atol=1e-5)


@pytest.mark.parametrize("alone", [False, True], ids=["the file", "a folder that holds nothing else"])
def test_pruning_it_is_pruning_the_converted_folder(model: Any, tmp_path: Path, alone: bool) -> None:
    here = tmp_path / "here"
    here.mkdir()
    write(here / "model.gguf", model, quantised=True)
    dequantise(here / "model.gguf", torch.bfloat16, tmp_path / "folder")
    named = here if alone else here / "model.gguf"
    with pytest.warns(PrunecompWarning, match="was dequantised to bfloat16 in .*cache"):
        result = prunecomp.prune(named, 2, TOKENS, preset="paper")
    out = load_file(result.save(tmp_path / "out") / "model.safetensors")
    expected = load_file(
        prunecomp.prune(tmp_path / "folder", 2, TOKENS, preset="paper").save(tmp_path / "other") / "model.safetensors"
    )
    assert out.keys() == expected.keys()
    assert all(torch.equal(out[name], expected[name]) for name in expected)
    assert {tensor.dtype for tensor in out.values()} == {torch.bfloat16}


def test_the_export_has_the_dtype_that_is_asked_for(file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", TOKENS)
    arguments = ["prune", file, "--layers", 1, "--calibration", tmp_path / "ids.npy", "--dtype", "float16"]
    done = invoke(*arguments, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.float16


def test_info_tells_how_it_is_stored(model: Any, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", model, quantised=True)
    assert gguf_types(tmp_path / "model.gguf") == "Q8_0, F32"
    seen = describe(tmp_path / "model.gguf")
    assert (seen["layers"], seen["quantised"]) == (LAYERS, "GGUF (Q8_0, F32), dequantised when it is read")


def test_what_is_cut_short_is_told_by_the_byte(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=rf"is cut short: .* ends at byte [\d,]+, the file at {size:,}"):
            prunecomp.score(file, TOKENS)
    for content in (whole[:300], b"GGUF", b"", b"text that is none"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is no GGUF, or its header is damaged or ends before byte"):
            prunecomp.score(file, TOKENS)


def test_an_architecture_that_is_not_mapped_is_refused_by_name(model: Any, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", model, architecture="rwkv6")
    with pytest.raises(CheckpointError, match=r"model\.gguf: transformers does not read this GGUF: .*rwkv6"):
        prunecomp.score(tmp_path / "model.gguf", TOKENS)


def test_which_file_is_meant_must_be_clear(file: Path, tmp_path: Path) -> None:
    (tmp_path / "second.gguf").write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="holds 2 GGUF files: give one of them"):
        prunecomp.score(tmp_path, TOKENS)
    part = tmp_path / "m-00001-of-00002.gguf"
    part.write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="one of several parts: join them first"):
        prunecomp.score(part, TOKENS)
