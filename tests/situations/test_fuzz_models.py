"""Whatever lies in a model's folder, the outcome is success or a sentence: never another exception.

The examples are the same every time; with the environment variable PRUNECOMP_SOAK set there are many more of them.
"""

from __future__ import annotations

import copy
import json
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import prunecomp
from prunecomp.errors import DataError, PrunecompError
from prunecomp.model.source import describe, open_source
from tests.families.test_families import build as build_family
from tests.situations.folders import folder_of

SOAK = 25 if os.environ.get("PRUNECOMP_SOAK") else 1
FUZZ = {
    "derandomize": True, "deadline": None, "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}  # fmt: skip
TOKENS = torch.arange(24).reshape(2, 12) % 16

NUMBERS = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([64, 2**31, 2**63, -(2**63), 10**30, 0.5, -1.0, 1e-6, 1e308, float("inf"), float("nan")]),
)
WORDS = st.sampled_from(
    ["", "llama", "gpt2", "float32", "float8_e4m3fn", "gelu", "yarn", "full_attention", "../x", "\x00"]
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
NESTED = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=7) | st.dictionaries(WORDS, inner), max_leaves=8)
VALUES = PLAIN | NESTED
EXTRA = (
    "quantization_config", "text_config", "layer_types", "rope_scaling", "rope_parameters", "auto_map", "n_layers",
    "dtype", "torch_dtype", "sliding_window", "num_key_value_heads", "head_dim", "transformers_weights", "hidden_act",
    "architectures", "_attn_implementation", "tie_word_embeddings", "vision_config", "num_labels", "id2label",
    "is_decoder", "model_type",
)  # fmt: skip
METHODS = ("fp8", "mxfp4", "bitsandbytes", "compressed-tensors", "gptq", "awq", "torchao", "modelopt")
SETTINGS = (
    "bits", "group_size", "weight_block_size", "format", "version", "config_groups", "ignore", "load_in_4bit", "fmt",
    "desc_act", "modules_to_not_convert", "dynamic", "checkpoint_format", "sparsity_config", "kv_cache_scheme",
)  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder a family, its tensors in two shards."""
    root = tmp_path_factory.mktemp("fuzz")
    folder_of("llama", root / "llama", {"max_shard_size": "300KB"})
    for case in ("gpt2", "gemma3", "qwen3-moe", "deepseek-v3", "phi3"):
        build_family(case).save_pretrained(root / case, max_shard_size="100KB")
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture
def outcome() -> Iterator[Callable[[Path], None]]:
    """Run what looks at a folder; any error but ours goes through."""

    def run(folder: Path) -> None:
        for look in (
            describe,
            lambda f: prunecomp.score(f, TOKENS),
            lambda f: prunecomp.prune(f, 1, TOKENS, preset="paper"),
        ):
            try:
                look(folder)
            except PrunecompError:
                continue

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield run


def changed(data: st.DataObject, held: Any, extra: tuple[str, ...] = ()) -> Any:
    """``held`` with a few of its values, at any depth, replaced, taken out or added."""
    held = copy.deepcopy(held)
    for _ in range(data.draw(st.integers(1, 3))):
        place = held
        while isinstance(place, dict) and place:
            key = data.draw(st.sampled_from(sorted({*place, *(extra if place is held else ())})))
            if not isinstance(place.get(key), dict) or not place[key] or data.draw(st.booleans()):
                if data.draw(st.integers(0, 9)) == 0:
                    place.pop(key, None)
                else:
                    place[key] = data.draw(VALUES)
                break
            place = place[key]
    return held


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """``content`` cut short, or with bytes replaced."""
    if not content or data.draw(st.booleans()):
        return content[: data.draw(st.integers(0, len(content)))]
    changed = bytearray(content)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        changed[place] = data.draw(st.integers(0, 255))
    return bytes(changed)


def spoilt(folder: Path, file: str, content: bytes | str, outcome: Callable[[Path], None]) -> None:
    """Look at the ``folder`` with this ``content`` in a ``file``, and put back what was there."""
    path = folder / file
    before = path.read_bytes() if path.is_file() else None
    try:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        outcome(folder)
    finally:
        path.unlink()
        if before is not None:
            path.write_bytes(before)


@settings(max_examples=30 * SOAK, **FUZZ)
@given(data=st.data())
def test_configs(bases: dict[str, Path], outcome: Callable[[Path], None], data: st.DataObject) -> None:
    folder = bases[data.draw(st.sampled_from(sorted(bases)))]
    config = changed(data, json.loads((folder / "config.json").read_text()), EXTRA)
    spoilt(folder, "config.json", json.dumps(config), outcome)


@settings(max_examples=15 * SOAK, **FUZZ)
@given(data=st.data())
def test_quantisation_configs(bases: dict[str, Path], outcome: Callable[[Path], None], data: st.DataObject) -> None:
    config = json.loads((bases["llama"] / "config.json").read_text())
    stated = data.draw(st.dictionaries(st.sampled_from(SETTINGS), VALUES, max_size=4))
    config["quantization_config"] = {"quant_method": data.draw(st.sampled_from(METHODS)), **stated}
    spoilt(bases["llama"], "config.json", json.dumps(config), outcome)


@settings(max_examples=15 * SOAK, **FUZZ)
@given(data=st.data(), file=st.sampled_from(["config.json", "model.safetensors.index.json", "generation_config.json"]))
def test_damaged_json(bases: dict[str, Path], outcome: Callable[[Path], None], data: st.DataObject, file: str) -> None:
    folder = bases["llama"]
    content = damaged(data, (folder / file).read_bytes())
    spoilt(folder, file, data.draw(st.sampled_from([content, json.dumps(data.draw(VALUES)).encode()])), outcome)


@settings(max_examples=15 * SOAK, **FUZZ)
@given(data=st.data())
def test_indexes(bases: dict[str, Path], outcome: Callable[[Path], None], data: st.DataObject) -> None:
    folder = bases["llama"]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    if data.draw(st.booleans()):
        names = sorted(index["weight_map"])
        for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
            index["weight_map"][name] = data.draw(st.sampled_from([*files, "config.json", "x", "..", "/etc/passwd"]))
    else:
        index = changed(data, index)
    spoilt(folder, "model.safetensors.index.json", json.dumps(index), outcome)


@settings(max_examples=40 * SOAK, **FUZZ)
@given(data=st.data())
def test_headers(bases: dict[str, Path], outcome: Callable[[Path], None], data: st.DataObject) -> None:
    folder = bases["llama"]
    shard = min(folder.glob("model-*.safetensors"))
    content = shard.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, values = content[8 : 8 + length], content[8 + length :]
    kind = data.draw(st.sampled_from(["entry", "length", "damage", "name"]))
    held = json.loads(header)
    names = sorted(set(held) - {"__metadata__"})
    name = data.draw(st.sampled_from(names))
    if kind == "entry":
        dtypes = st.sampled_from(
            ["F32", "BF16", "F16", "F64", "I64", "I8", "U8", "U16", "U64", "BOOL", "F8_E4M3", "F4", "C64"]
        )
        shapes = st.lists(st.sampled_from([0, 1, 2, 48, 101, 4848, 2**40, 2**63, -1]), max_size=4)
        field, value = data.draw(st.one_of(
            st.tuples(st.just("dtype"), dtypes), st.tuples(st.just("shape"), shapes),
            st.tuples(st.sampled_from(["dtype", "shape", "data_offsets", "other"]), VALUES),
        ))  # fmt: skip
        held[name][field] = value
    elif kind == "name":
        new = data.draw(
            st.sampled_from(["lm_head.bias", "model.layers.7.x", "model.layers.x.y", "", "a" * 300, "\x00", "é"])
        )
        held = {new if old == name else old: entry for old, entry in held.items()}
    elif kind == "damage":
        header = damaged(data, header)
    if kind in ("entry", "name"):
        header = json.dumps(held).encode()
    length = data.draw(st.sampled_from([0, 1, 2**20, 2**62, 2**64 - 1])) if kind == "length" else len(header)
    spoilt(folder, shard.name, struct.pack("<Q", length) + header + values, outcome)


@settings(max_examples=15 * SOAK, **FUZZ)
@given(data=st.data())
def test_stored_values(bases: dict[str, Path], outcome: Callable[[Path], None], data: st.DataObject) -> None:
    """Tensors of other shapes and dtypes, missing and too many, in a file that is sound."""
    folder = bases["llama"]
    shard = min(folder.glob("model-*.safetensors"))
    tensors = load_file(shard)
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors.pop(name)
    other = data.draw(st.sampled_from([torch.float8_e4m3fn, torch.int8, torch.bool, torch.float64, torch.float16]))
    kind = data.draw(st.sampled_from(["gone", "dtype", "flat", "nan", "scale"]))
    if kind != "gone":
        new = {"dtype": tensor.to(other), "flat": tensor.flatten(), "nan": tensor * torch.nan, "scale": tensor * 1e30}
        tensors[name] = new[kind]
    aside = folder.parent / "aside"
    save_file(tensors, aside, metadata={"format": "pt"})
    spoilt(folder, shard.name, aside.read_bytes(), outcome)
    aside.unlink()


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = folder_of("llama", tmp_path_factory.mktemp("tokenizers") / "base")
    words = Tokenizer(WordLevel({"a": 0, "text": 1, "?": 2}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", bos_token="a").save_pretrained(folder)
    return folder


@settings(max_examples=40 * SOAK, **FUZZ)
@given(data=st.data())
def test_tokenizers(with_tokenizer: Path, outcome: Callable[[Path], None], data: st.DataObject) -> None:
    def look(folder: Path) -> None:
        model_source = open_source(folder, dtype="auto", device="cpu", tokenizer=None, allow_pickle=False)
        assert model_source.tokenize is not None
        with suppress(PrunecompError):
            model_source.tokenize("a text")

    path = with_tokenizer / data.draw(st.sampled_from(sorted(p.name for p in with_tokenizer.glob("*token*.json"))))
    content = path.read_bytes()
    extra = ("tokenizer_class", "model_max_length", "added_tokens_decoder", "chat_template", "auto_map", "bos_token")
    kind = data.draw(st.sampled_from(["damage", "value", "values"]))
    if kind == "damage":
        content = damaged(data, content)
    else:
        value = data.draw(VALUES) if kind == "value" else changed(data, json.loads(content), extra)
        content = json.dumps(value).encode()
    spoilt(with_tokenizer, path.name, content, look)


def test_a_tokenizer_that_loads_and_cannot_read_is_named(with_tokenizer: Path) -> None:
    """What the soak found: a length that is a text raises a bare TypeError inside transformers."""
    path = with_tokenizer / "tokenizer_config.json"
    content = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(content), "model_max_length": "4k"}))
        model_source = open_source(with_tokenizer, dtype="auto", device="cpu", tokenizer=None, allow_pickle=False)
        assert model_source.tokenize is not None
        with pytest.raises(DataError, match="the tokenizer does not take it"):
            model_source.tokenize("a text")
    finally:
        path.write_text(content)
