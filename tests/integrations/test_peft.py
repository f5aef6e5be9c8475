"""peft, in whose environment this runs: the example that heals an export."""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.integrations.common import ROOT, cli_export, example
from tests.models import build, draw_tokens

pytest.importorskip("peft")
HEAL = ROOT / "examples" / "heal.py"


def test_an_export_is_healed(
    row: Callable[..., None], checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(example("peft", ""), comments=True)
    words = words[words.index("python") + 1 :]
    pruned, out = cli_export(checkout / words[1]), checkout / "healed"
    quick = ["--steps", "6", "--batch", "2", "--seqlen", "32", "--windows", "4"]
    monkeypatch.setattr(sys, "argv", [*words, *quick])
    runpy.run_path(words[0], run_name="__main__")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    found = {row[0]: [float(cell) for cell in row[1:]] for row in rows if len(row) == 3}
    assert list(found) == ["dense", "pruned", "healed"]
    lost, won = found["pruned"][0], found["healed"][0]
    row("examples/heal.py", "perplexity after 6 steps over before", won / lost, 0.99, 1.0, values=f"{lost} to {won}")
    before, after = (load_file(folder / "model.safetensors") for folder in (pruned, out))
    assert {name: (t.shape, t.dtype) for name, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    assert not all(torch.equal(before[name], after[name]) for name in before)
    config = AutoModelForCausalLM.from_pretrained(out).config
    recorded = json.loads((pruned / "prunecomp.json").read_text())["layer_map"]
    wrong = sum(one != other for one, other in zip(config.layer_map, recorded, strict=True))
    unlike = sum(layer != number for number, layer in enumerate(recorded))
    row("examples/heal.py", "entries of layer_map that are not the record's", wrong, 0, unlike)


def test_the_map_says_which_streams_belong_together(generator: torch.Generator) -> None:
    """A student that is its teacher has nothing to learn but the text; by a wrong map it would have."""
    model = build("llama")
    tokens = draw_tokens(model, generator)
    loss_of = runpy.run_path(str(HEAL))["loss_of"]
    layers = list(range(model.config.num_hidden_layers))
    with torch.no_grad():
        text = model(tokens, labels=tokens).loss
        torch.testing.assert_close(loss_of(model, model, layers, tokens), 0.5 * text)
        assert loss_of(model, model, layers[1:] + layers[:1], tokens) > 0.5 * text + 1e-3
