"""The mergekit recipe makes the tensors of the export: by what passthrough means, and by mergekit itself."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import prunecomp
from prunecomp.errors import OptionError
from tests.models import build, draw_tokens


@pytest.fixture(params=["llama", "qwen2-tied"])
def base(request: pytest.FixtureRequest, saved: Callable[..., Path]) -> Path:
    return saved(build(request.param).to(torch.bfloat16))


def export(base: Path, generator: torch.Generator, out: Path, **options: Any) -> Path:
    tokens = draw_tokens(build("llama"), generator)
    result = prunecomp.prune(base, 2, tokens, metric="given", given=[1, 3], **options, preset="paper")
    return result.save(out, recipe=True)


def passthrough(recipe: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Passthrough as mergekit documents it: the first filter that a name contains gives the factor."""
    assert recipe["merge_method"] == "passthrough"
    made = {name: tensor for name, tensor in tensors.items() if ".layers." not in name}
    number = 0
    for part in recipe["slices"]:
        (source,) = part["sources"]
        for layer in range(*source["layer_range"]):
            for name, tensor in tensors.items():
                if not name.startswith(f"model.layers.{layer}."):
                    continue
                conditions = source.get("parameters", {}).get("scale", [])
                fitting = [c["value"] for c in conditions if c.get("filter", "") in name]
                new = re.sub(r"layers\.\d+\.", f"layers.{number}.", name)
                made[new] = tensor * fitting[0] if fitting else tensor
            number += 1
    return made


def assert_same(made: dict[str, torch.Tensor], exported: dict[str, torch.Tensor]) -> None:
    assert set(made) == set(exported)
    for name, tensor in exported.items():
        assert torch.equal(made[name], tensor), name


def test_a_recipe_makes_the_tensors_of_the_export(base: Path, generator: torch.Generator, tmp_path: Path) -> None:
    out = export(base, generator, tmp_path / "out")
    recipe = yaml.safe_load((out / "mergekit.yml").read_text())
    assert [part["sources"][0]["layer_range"] for part in recipe["slices"]] == [[0, 1], [2, 3], [4, 6]]
    assert_same(passthrough(recipe, load_file(base / "model.safetensors")), load_file(out / "model.safetensors"))


def test_mergekit_makes_the_tensors_of_the_export(base: Path, generator: torch.Generator, tmp_path: Path) -> None:
    pytest.importorskip("mergekit", reason="no part of the test set-up: make interop installs and runs it")
    out = export(base, generator, tmp_path / "out")
    command = [sys.executable, "-m", "mergekit.scripts.run_yaml", str(out / "mergekit.yml"), str(tmp_path / "merged")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # It checks the config that it has written, and layer_types is still as long as it was: the weights are whole then.
    assert done.returncode == 0 or "must be equal to the number of `layer_types`" in done.stderr, done.stderr
    made: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "merged").glob("*.safetensors"):
        made.update(load_file(file))
    assert_same(made, load_file(out / "model.safetensors"))


def test_what_no_recipe_can_say_is_refused(
    generator: torch.Generator, tmp_path: Path, saved: Callable[..., Path]
) -> None:
    base = saved(build("llama-tied-biased"))
    with pytest.raises(OptionError, match=r"o_proj\.bias would be scaled"):
        export(base, generator, tmp_path / "out")
    with pytest.raises(OptionError, match="the embedding and the final norm change too"):
        export(base, generator, tmp_path / "out", fold="down")
    with pytest.raises(OptionError, match="new weights"):
        export(base, generator, tmp_path / "out", repair="refit")
    model = build("llama")
    with pytest.raises(OptionError, match="neither"):
        prunecomp.prune(model, 1, draw_tokens(model, generator), preset="paper").save(tmp_path / "out", recipe=True)
    assert not (tmp_path / "out").exists()
    assert (export(base, generator, tmp_path / "out", compensation="none") / "mergekit.yml").exists()
