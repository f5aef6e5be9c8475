"""All that belongs to a model goes along with its layers; what stays behind is named, and nothing refers to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import prunecomp
from prunecomp.errors import CheckpointError, PrunecompWarning
from prunecomp.model.source import companions
from prunecomp.model.source.companions import find_companions
from tests.situations.folders import TOKENS, edit_json, folder_of

KEPT = (
    "tokenizer.json", "tekken.json", "spiece.model", "qwen.tiktoken", "vocab.txt", "merges.txt", "chat_template.jinja",
    "additional_chat_templates/rag.jinja", "preprocessor_config.json", "video_preprocessor_config.json", "LICENSE",
    "USE_POLICY.md", "NOTICE", "modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "bos.bin.txt",
)  # fmt: skip
LEFT = (
    "modeling_own.py", "model.gguf", "model.fp16.safetensors", "original/consolidated.00.pth", "original/params.json",
    "onnx/model.onnx", "checkpoint-5/trainer_state.json", "trainer_state.json", "training_args.bin", "optimizer.pt",
    "runs/x.tfevents.1", "loss.csv", "params.json", "figure.png", "x.lock",
)  # fmt: skip
UNTOLD = ("README.md", ".gitattributes", ".git/config", ".cache/x", "prunecomp.json")


def fill(folder: Path, names: tuple[str, ...], text: str = "{}") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def relative(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_goes_along_and_what_does_not(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "base")
    fill(folder, (*KEPT, *LEFT, *UNTOLD))
    save_file({"x": torch.ones(1)}, folder / "2_Dense" / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]))
    with pytest.warns(PrunecompWarning, match="not in the export") as told:
        out = prunecomp.prune(folder, 1, TOKENS, preset="paper").save(tmp_path / "out")
    ours = {"config.json", "model.safetensors", "README.md", "prunecomp.json", "generation_config.json"}
    assert relative(out) == {*KEPT, *ours}
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in KEPT)
    sentence = next(str(w.message) for w in told if "not in the export" in str(w.message))
    for name in LEFT:
        part = name.partition("/")
        assert part[0] + part[1] in sentence, name


def test_nothing_refers_to_code_that_is_left_behind(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "base")
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    for file in ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json"):
        edit_json(folder / file, auto_map=code, kept=5)
    edit_json(folder / "config.json", custom_pipelines={"x": {"impl": "own.Pipeline"}})
    (folder / "own.py").write_text("raise SystemExit('run')")
    with pytest.warns(PrunecompWarning) as told:
        out = prunecomp.prune(folder, 1, TOKENS, preset="paper").save(tmp_path / "out")
    for file in ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json"):
        assert any(f"{file}: auto_map" in str(w.message) for w in told), file
        assert json.loads((out / file).read_text())["kept"] == 5
        assert "own." not in (out / file).read_text()
    AutoConfig.from_pretrained(out, trust_remote_code=True)
    AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)


def test_links_are_followed_to_what_is_the_models(tmp_path: Path) -> None:
    """In the hub's cache every file is a link to a blob; a link of another kind may lead to anybody's file."""
    cache, secret, other = tmp_path / "blobs", tmp_path / ".secrets", tmp_path / "other"
    snapshot = folder_of("llama", tmp_path / "snapshots" / "abc")
    for folder in (cache, secret, other):
        folder.mkdir()
    for path in [*snapshot.iterdir(), snapshot / "tokenizer.json", snapshot / "tekken.json"]:
        blob = cache / f"blob-{path.name}"
        blob.write_bytes(path.read_bytes() if path.exists() else b"{}")
        path.unlink(missing_ok=True)
        path.symlink_to(blob)
    (secret / "id").write_text("secret")
    (other / "spiece.model").write_text("the same")
    (snapshot / "LICENSE").symlink_to(secret / "id")
    (snapshot / "id").symlink_to(secret / "id")
    (snapshot / "spiece.model").symlink_to(other / "spiece.model")
    (snapshot / "folder").symlink_to(other)
    (snapshot / "gone.txt").symlink_to(other / "nothing")
    with pytest.warns(
        PrunecompWarning, match=r"LICENSE .a link out.*folder/ .a link to a folder.*gone.txt .*id .a link"
    ):
        out = prunecomp.prune(snapshot, 1, TOKENS, preset="paper").save(tmp_path / "out")
    assert {"tokenizer.json", "tekken.json", "spiece.model"} < relative(out)
    assert not {"LICENSE", "id", "gone.txt", "folder"} & {path.name for path in out.iterdir()}
    assert not any(path.is_symlink() for path in out.iterdir())


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
@pytest.mark.parametrize("file", ["generation_config.json", "tokenizer_config.json", "processor_config.json"])
def test_a_damaged_file_is_told_before_the_work(tmp_path: Path, file: str, content: str) -> None:
    folder = folder_of("llama", tmp_path / "base")
    (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=file):
        prunecomp.prune(folder, 1, "no such file", preset="paper")


@pytest.mark.parametrize("content", ["[]", "5", '{"tokenizer_class": 5}', '{"added_tokens_decoder": 7}', "{"])
def test_a_damaged_tokenizer_is_a_sentence(tmp_path: Path, content: str, reference_model: Path) -> None:
    folder = folder_of("llama", tmp_path / "base")
    (folder / "tokenizer.json").write_bytes((reference_model / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match="tokenizer"):
        prunecomp.score(folder, reference_model / "calibration.txt")
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="tokenizer"):
        prunecomp.score(folder, reference_model / "calibration.txt")


def test_what_cannot_be_read_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("llama", tmp_path / "base")

    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(CheckpointError, match="Permission denied"):
        find_companions(folder, set())


def test_files_of_unusual_size_stay_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = folder_of("llama", tmp_path / "base")
    (tmp_path / "elsewhere").mkdir()
    for name, size in (("notes.bin.txt", 3000), ("small.txt", 500), ("linked.txt", 1500)):
        (tmp_path / "elsewhere" / name).write_text("x" * size)
    (base / "notes.bin.txt").write_text("x" * 3000)
    for name in ("small.txt", "linked.txt"):
        (base / name).symlink_to(tmp_path / "elsewhere" / name)
    assert companions.LARGEST_LINKED > 40_000_000, "the largest tokenizers are of 35 MB"
    monkeypatch.setattr(companions, "LARGEST", 2000)
    monkeypatch.setattr(companions, "LARGEST_LINKED", 1000)
    out = tmp_path / "out"
    with pytest.warns(PrunecompWarning, match=r"linked\.txt .a link out.*notes\.bin\.txt .more than 2,000"):
        prunecomp.prune(base, 1, TOKENS, preset="paper").save(out)
    assert (out / "small.txt").read_text() == "x" * 500
    assert not (out / "linked.txt").exists()
    assert not (out / "notes.bin.txt").exists()
