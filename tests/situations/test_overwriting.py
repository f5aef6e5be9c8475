"""A checkpoint in the place of another: told before the work, and the former stays until the new one is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

import prunecomp
from prunecomp.checkpoint import export
from prunecomp.errors import OutputError
from prunecomp.pruning.journal import journal_path
from tests.situations.small import Small, invoke, said
from tests.situations.small import small as small


def prune(small: Small, out: Path, *words: object) -> tuple[int, str]:
    result = invoke("prune", small.folder, "--layers", 1, "--calibration", small.windows, "--out", out, *words)
    return result.exit_code, said(result)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_is_replaced_when_asked_for(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prune(small, out)[0] == 0
    (out / "more").write_text("of the former")
    before = files(out)
    code, text = prune(small, out, "--compensation", "none")
    assert (code, files(out)) == (7, before)
    assert "exists and is not an empty folder: choose another --out, or remove it, or replace it with --force" in text
    assert prune(small, out, "--metric", "given", "--given", 2, "--force")[0] == 0
    assert (out / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert not (out / "more").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside it"


def test_what_is_to_be_replaced_is_not_taken_for_what_was_made(small: Small, tmp_path: Path) -> None:
    """A run that was killed before its checkpoint was whole, and the one that it was to replace still lies there."""
    out, options = tmp_path / "out", ("--metric", "given", "--given")
    assert prune(small, out, *options, 2)[0] == 0
    before = files(out)
    assert prune(small, tmp_path / "other", *options, 3)[0] == 0
    prunecomp.prune(str(small.folder), 1, str(small.windows), metric="given", given=[3], journal=journal_path(out))
    assert journal_path(out).is_file()
    code, text = prune(small, out, *options, 3, "--force", "--resume")
    assert code == 0, text
    assert files(out)["model.safetensors"] == files(tmp_path / "other")["model.safetensors"]
    assert files(out)["model.safetensors"] != before["model.safetensors"]


def test_the_former_stays_where_the_new_one_fails(
    small: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    result = prunecomp.prune(small.folder, 1, small.windows, preset="paper")
    result.save(out)
    before = files(out)
    for place in ("write_tensors", "model_card"):
        with monkeypatch.context() as patched:
            patched.setattr(f"prunecomp.checkpoint.export.{place}", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                result.save(out, overwrite=True)
        assert files(out) == before
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target == out and "partial" in self.name and (self / "fresh").exists():
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    monkeypatch.setattr("prunecomp.checkpoint.export.model_card", lambda *_: "x")
    write = export.write_json
    monkeypatch.setattr(
        export, "write_json", lambda path, value: (write(path, value), write(path.with_name("fresh"), 1))
    )
    with pytest.raises(OutputError, match="could not be written"):
        result.save(out, overwrite=True)
    assert files(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_checkpoint_or_the_model_itself_is_not_replaced(small: Small, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    code, text = prune(small, tmp_path / "notes", "--force")
    assert (code, files(tmp_path / "notes")) == (7, {"a.txt": b"mine"})
    assert "holds something else than a checkpoint, and is not replaced" in text
    before = files(small.folder)
    (tmp_path / "link").symlink_to(small.folder.parent)
    for place in (small.folder, tmp_path / "link" / small.folder.name):
        code, text = prune(small, place, "--force")
        assert (code, files(small.folder)) == (7, before)
        assert "holds the model that is pruned, and is not replaced" in text
