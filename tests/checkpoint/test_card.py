"""The card of an export: what the Hub reads, and what a reader needs to do it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import metadata_load

import prunecomp
from prunecomp.model.source.licence import Licence, read_licence
from tests.models import build, draw_tokens


def test_a_card_tells_what_was_done(generator: torch.Generator, tmp_path: Path, saved: Callable[..., Path]) -> None:
    model = build("llama")
    base = saved(model)
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: acme-1\ntags: [x]\n---\n# Base\n")
    tokens = draw_tokens(model, generator)
    result = prunecomp.prune(base, 2, tokens, metric="given", given=[4, 1], eval=tokens, preset="paper")
    out = result.save(tmp_path / "out")
    text = (out / "README.md").read_text()
    front: Any = metadata_load(out / "README.md")
    assert front["base_model"] == "base"
    assert front["library_name"] == "transformers"
    assert front["license"] == "other"
    assert front["license_name"] == "acme-1"
    assert "prunecomp" in front["tags"]
    assert f"| 1 | 4 | 0 | {result.scales[0]:.6g} |" in text
    assert result.calibration.digest in text
    assert result.perplexity is not None
    assert f"{result.perplexity['pruned']:.2f} after" in text
    assert f"prunecomp.prune('{base}', 2, " in text
    assert "metric='given', given=[4, 1])" in text
    assert "logits within" in text


def test_a_command_line_stands_in_the_card(generator: torch.Generator, tmp_path: Path) -> None:
    model = build("llama")
    result = prunecomp.prune(model, 1, draw_tokens(model, generator), preset="paper")
    out = result.save(tmp_path / "out", command="prunecomp prune base --layers 1", verify=False)
    text = (out / "README.md").read_text()
    assert "\nprunecomp prune base --layers 1\n" in text
    assert "Licence of the base model: not stated." in text
    assert "reading it back: no." in text


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\nlicense: mit\n---\n", "LICENSE": "x"}, "mit"),
        ({"README.md": "# no front matter", "LICENSE.txt": "x"}, "see LICENSE.txt"),
        ({"README.md": "---\nlicense: [\n---\n"}, "not stated"),
        ({}, "not stated"),
    ],
)
def test_the_licence_is_what_the_base_states(tmp_path: Path, files: dict[str, str], licence: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert str(read_licence(tmp_path)) == licence
    assert str(Licence()) == "not stated"
