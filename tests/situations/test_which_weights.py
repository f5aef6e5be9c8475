"""Which files are the weights: those that transformers loads, in every constellation, or a refusal that names them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import prunecomp
from prunecomp.errors import CheckpointError, PrunecompWarning
from prunecomp.model.loader import load_decoder
from prunecomp.model.source import describe
from tests.situations.folders import TOKENS, edit_json, edit_tensors, folder_of, logits, theirs

INDEX = "model.safetensors.index.json"


def ours(folder: Path, **options: Any) -> torch.Tensor:
    return logits(load_decoder(folder, **options).model)


def other_weights(folder: Path, file: str) -> None:
    """All tensors of a sharded model, in one file, each half as large."""
    tensors = {name: t / 2 for shard in folder.glob("model-*.safetensors") for name, t in load_file(shard).items()}
    save_file(tensors, folder / file, metadata={"format": "pt"})


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return folder_of("llama", tmp_path / "base", {"max_shard_size": "60KB"})


def test_a_single_file_goes_before_an_index(sharded: Path, tmp_path: Path) -> None:
    other_weights(sharded, "model.safetensors")
    with pytest.warns(PrunecompWarning, match=rf"holds both model.safetensors and {INDEX}: the first is taken"):
        result = prunecomp.prune(sharded, 2, TOKENS, preset="paper")
    base = theirs(sharded)
    result.apply(base)
    assert torch.allclose(logits(theirs(result.save(tmp_path / "out"))), logits(base), atol=1e-4)
    assert torch.equal(ours(sharded), logits(theirs(sharded)))


def test_a_single_file_that_lacks_what_the_index_has_is_refused(sharded: Path) -> None:
    shutil.copy(min(sharded.glob("model-*.safetensors")), sharded / "model.safetensors")
    with (
        pytest.warns(PrunecompWarning, match="holds both"),
        pytest.raises(CheckpointError, match=r"the weights lack|lacks"),
    ):
        describe(sharded)


def test_an_index_of_the_single_file_is_no_contradiction(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = folder_of("llama", tmp_path / "base")
    names = load_file(folder / "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}))
    assert torch.equal(ours(folder), logits(theirs(folder)))
    assert not [w for w in recwarn if w.category is PrunecompWarning]


@pytest.mark.parametrize("file", ["model.fp16.safetensors", "consolidated.safetensors", "adapter_model.safetensors"])
def test_weights_of_another_name_are_not_the_models(sharded: Path, file: str, tmp_path: Path) -> None:
    before = ours(sharded)
    other_weights(sharded, file)
    assert torch.equal(ours(sharded), before)
    assert torch.equal(logits(theirs(sharded)), before)
    with pytest.warns(PrunecompWarning, match=f"{file} .weights that are not the model's"):
        prunecomp.prune(sharded, 1, TOKENS, preset="paper").save(tmp_path / "out")
    assert not (tmp_path / "out" / file).exists()
    for shard in [*sharded.glob("model-*.safetensors"), sharded / INDEX]:
        shard.unlink()
    with pytest.raises(CheckpointError, match=f"by other names, which transformers does not load: {file}"):
        describe(sharded)


def test_a_pickle_beside_them_is_not_read(sharded: Path) -> None:
    torch.save({"x": 1}, sharded / "pytorch_model.bin")
    assert torch.equal(ours(sharded, allow_pickle=True), logits(theirs(sharded)))


def test_an_adapter_is_refused(sharded: Path) -> None:
    edit_json(sharded / "adapter_config.json", base_model_name_or_path="elsewhere")
    with pytest.raises(CheckpointError, match=r"adapter_config.json: an adapter lies here.*merge_and_unload"):
        describe(sharded)


def test_a_file_that_the_config_names_goes_before_all(sharded: Path, tmp_path: Path) -> None:
    other_weights(sharded, "mine.safetensors")
    edit_json(sharded / "config.json", transformers_weights="mine.safetensors")
    with pytest.warns(PrunecompWarning, match=r"holds both mine.safetensors"):
        assert torch.equal(ours(sharded), logits(theirs(sharded)))
    out = prunecomp.prune(sharded, 1, TOKENS, preset="paper").save(tmp_path / "out")
    assert "transformers_weights" not in json.loads((out / "config.json").read_text())
    edit_json(sharded / "config.json", transformers_weights="../mine.safetensors")
    with pytest.raises(CheckpointError, match="transformers_weights"):
        describe(sharded)


def test_an_index_that_names_a_part_is_refused(tmp_path: Path) -> None:
    """transformers would load the head that lies in the shard; the config alone would tie it."""
    folder = folder_of("llama-tied-biased", tmp_path / "base", {"max_shard_size": "60KB"})
    index = json.loads((folder / INDEX).read_text())
    shard = index["weight_map"]["model.norm.weight"]
    edit_tensors(folder / shard, lambda tensors: tensors.update({"lm_head.weight": torch.ones(101, 48)}))
    with pytest.raises(CheckpointError, match=rf"{shard} holds lm_head.weight.*the index does not name"):
        describe(folder)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    first, *_, last = sorted(sharded.glob("model-*.safetensors"))
    name = next(iter(load_file(first)))
    edit_tensors(last, lambda tensors: tensors.update({name: load_file(first)[name] * 2}))
    with pytest.raises(CheckpointError, match=f"{last.name} holds '{name}', which .* places in {first.name}"):
        describe(sharded)


def as_pickle(folder: Path, entries: dict[str, Any] | None = None, **options: Any) -> None:
    torch.save({**theirs(folder).state_dict(), **(entries or {})}, folder / "pytorch_model.bin", **options)
    for path in folder.glob("*.safetensors*"):
        path.unlink()


@pytest.mark.parametrize("archive", [True, False])
def test_pickles_of_both_kinds_with_a_tied_head(archive: bool, tmp_path: Path) -> None:
    folder = folder_of("llama-tied-biased", tmp_path / "base")
    before = logits(theirs(folder))
    as_pickle(folder, _use_new_zipfile_serialization=archive)
    assert torch.equal(ours(folder, allow_pickle=True), before)
    assert prunecomp.prune(folder, 1, TOKENS, allow_pickle=True, preset="paper").save(tmp_path / "out").is_dir()


@pytest.mark.parametrize("entry", [3, "text", {"nested": torch.ones(1)}, torch.ones(2, 2).to_sparse()])
def test_an_entry_that_is_no_plain_tensor_is_told_at_once(entry: Any, tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "base")
    as_pickle(folder, {"extra": entry})
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin.* extra|'extra'"):
        describe(folder, allow_pickle=True)


WRONG = ["null", "[]", "[" * 100_000, *(f'{{"weight_map": {m}}}' for m in ("5", "{}", '{"a": 5}', '{"a": ".."}'))]


@pytest.mark.parametrize("content", WRONG, ids=lambda content: content[:24])
def test_an_index_of_the_wrong_kind(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=INDEX):
        describe(sharded)


def test_files_that_may_not_be_read(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    for method in ("read_bytes", "is_file", "is_dir", "iterdir"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, denied)
            with pytest.raises(CheckpointError, match="Permission denied"):
                prunecomp.prune(sharded, 1, TOKENS, preset="paper")


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_link_whose_file_did_not_arrive(tmp_path: Path, name: str) -> None:
    """As a snapshot in the hub's cache has it where the download was broken off."""
    folder = folder_of("llama", tmp_path / "base")
    (folder / "model.safetensors").unlink()
    (folder / name).symlink_to("../../blobs/0123")
    with pytest.raises(CheckpointError, match=f"{name} is a link to nothing: is the download complete"):
        prunecomp.prune(folder, 1, "no such file", preset="paper")


def test_a_damaged_index_beside_the_single_file_is_not_read(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "base")
    (folder / INDEX).write_text("{}")
    with pytest.warns(PrunecompWarning, match=rf"holds both model\.safetensors and {INDEX}"):
        assert torch.equal(ours(folder), logits(theirs(folder)))
