"""A run goes on only with the weights that it began with: every byte counts, and where and when they lie does not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

import prunecomp
from prunecomp.errors import JournalError
from prunecomp.model.source import InMemorySource
from tests.models import build
from tests.situations.folders import TOKENS, folder_of


def begun(folder: Path, journal: Path) -> None:
    prunecomp.prune(folder, 2, TOKENS, journal=journal, preset="paper")
    assert journal.is_file()


def resume(folder: Path, journal: Path) -> None:
    prunecomp.prune(folder, 2, TOKENS, journal=journal, resume=True, preset="paper")


@pytest.mark.parametrize("place", [0.31, 0.72, -5])
def test_one_byte_changed_in_place(tmp_path: Path, place: float) -> None:
    folder, journal = folder_of("llama", tmp_path / "base", {"max_shard_size": "60KB"}), tmp_path / "journal.json"
    begun(folder, journal)
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    before, data = shard.stat(), bytearray(shard.read_bytes())
    data[int(place * len(data)) if place > 0 else int(place)] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(JournalError, match="model was"):
        resume(folder, journal)


def test_a_copy_and_a_touched_file_are_the_same_model(tmp_path: Path) -> None:
    folder, journal = folder_of("llama", tmp_path / "base"), tmp_path / "journal.json"
    begun(folder, journal)
    resume(folder, journal)
    (folder / "model.safetensors").touch()
    resume(folder, journal)
    shutil.copytree(folder, tmp_path / "copy")
    resume(tmp_path / "copy", journal)
    blob = tmp_path / "blob"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    resume(folder, journal)
    (folder / "model.fp16.safetensors").write_bytes(b"not the model's")
    resume(folder, journal)


def test_a_model_in_memory_counts_whole() -> None:
    torch.manual_seed(0)
    model = build("llama")
    before = InMemorySource(model, None).fingerprint()
    assert InMemorySource(model, None).fingerprint() == before
    with torch.no_grad():
        model.lm_head.weight[7, 11] += 1e-3
    assert InMemorySource(model, None).fingerprint() != before
