"""Values that are not finite end every command with exit 5, naming layer and sequence; JSON stays JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import prunecomp
from prunecomp.compare import Comparison
from prunecomp.compensation.choice import minimise
from prunecomp.data.windows import Windows
from prunecomp.engine import candidates
from prunecomp.errors import NumericalError
from prunecomp.model.decoder import Decoder
from prunecomp.pruning.pruner import Pruner
from prunecomp.report.comparison import load_record, save_record
from tests.situations.data import command, model, save

IDS = np.arange(400) % 97


def overflowing(layer: int = 2) -> Any:
    """A model that overflows float16 in a layer, and float32 nowhere."""
    built = model()
    with torch.no_grad():
        built.model.layers[layer].mlp.down_proj.weight.mul_(1e7 / 0.02).clamp_(-6e4, 6e4)
        built.model.layers[layer].mlp.up_proj.weight.mul_(100)
    return built


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(overflowing(), tmp_path_factory.mktemp("overflow") / "m")


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids") / "ids.npy"
    np.save(path, IDS)
    return path


def test_every_command_names_layer_and_sequence(tmp_path: Path, folder: Path, ids: Path) -> None:
    run = ("--dtype", "float16", "--seqlen", 16)
    sampled = ("--calibration", ids, "--samples", 4, *run)
    commands = {
        "eval": ("eval", folder, "--eval", ids, *run),
        "eval --json": ("eval", folder, "--eval", ids, *run, "--json"),
        "score": ("score", folder, *sampled),
        "score ppl": ("score", folder, *sampled, "--metric", "ppl"),
        "prune": ("prune", folder, "--layers", 1, "--out", tmp_path / "a", *sampled, "--eval", ids),
        "compare": ("compare", folder, "--layers", "1", "--out", tmp_path / "b", *sampled, "--eval", f"x={ids}"),
    }
    for name, words in commands.items():
        result = command(*words)
        assert result.exit_code == 5, (name, result.stderr)
        assert "layer 2, sequence 0: " in result.stderr, name
        assert "--dtype float32" in result.stderr, name
        assert "nfinity" not in result.stdout
    assert prunecomp.evaluate(folder, IDS, seqlen=16, dtype="float32") > 1, "the advice works"


def test_functions_on_a_model_in_memory_name_them_too() -> None:
    built = overflowing().half()
    sequences = np.stack([IDS[:16], IDS[16:32]])
    with pytest.raises(NumericalError, match="layer 2, sequence 0: 1"):
        prunecomp.evaluate(built, sequences)
    with pytest.raises(NumericalError, match="layer 2, sequence 0: 1"):
        prunecomp.collect(built, sequences)
    pruner = prunecomp.pruner_for(built, sequences)
    for given in (None, sequences, sequences[0]):
        with pytest.raises(NumericalError, match="layer 2, sequence 0: 1"):
            pruner.loss(given)


def test_one_bad_sequence_is_found_among_many_and_padding_is_passed_over() -> None:
    built = model()
    with torch.no_grad():
        built.model.embed_tokens.weight[5] = math.inf
    good = np.full((6, 12), 7)
    good[1, 8:] = -1
    assert math.isfinite(prunecomp.evaluate(built, good))
    bad = good.copy()
    bad[4, -1] = 5  # where no loss is taken
    with pytest.raises(NumericalError, match="layer 0, sequence 4: "):
        prunecomp.evaluate(built, bad)


def test_a_head_that_overflows_is_told_from_the_layers() -> None:
    built = model().half()
    with torch.no_grad():
        built.lm_head.weight.fill_(6e4)
    with pytest.raises(NumericalError, match="sequence 0 has no finite loss, though what leaves each layer is finite"):
        prunecomp.evaluate(built, IDS, seqlen=16)


def test_a_removal_that_overflows_is_told_by_the_layer_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter([torch.zeros(2), torch.zeros(2), torch.tensor([0.0, math.nan]), torch.zeros(2)])
    monkeypatch.setattr(candidates, "batch_losses", lambda *arguments: next(given))
    with pytest.raises(NumericalError, match="without layer 2, sequence 1: the loss is not finite"):
        prunecomp.score(model(num_hidden_layers=4), IDS, samples=2, seqlen=16, metric="ppl")


def test_a_search_passes_by_what_overflows() -> None:
    tried = minimise(lambda x: math.inf if x > 0.1 else (x + 0.3) ** 2, 0.0, 0.5, 8, 1.0)
    assert all(math.isfinite(point) for point in tried)
    assert min(tried, key=lambda point: tried[point]) < 0.0


def test_infinite_perplexities_are_null_in_json_and_come_back(tmp_path: Path) -> None:
    built = model()
    with torch.no_grad():
        built.lm_head.weight.mul_(1e6)  # finite, and exp(loss) is not
    result = prunecomp.compare(built, [1], IDS, eval={"x": IDS}, samples=2, seqlen=16)
    assert result.dense["x"] == math.inf
    save_record(result, tmp_path)
    written = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert written["dense"] == {"x": None}
    assert load_record(tmp_path) == Comparison.from_record(json.loads(json.dumps(result.record())))
    save(built, tmp_path / "m")
    np.save(tmp_path / "ids.npy", IDS)
    shown = command("eval", tmp_path / "m", "--eval", tmp_path / "ids.npy", "--seqlen", 16, "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout, parse_constant=pytest.fail)["perplexity"] is None


def test_a_sequence_of_a_later_micro_batch_has_its_number() -> None:
    built = model()
    with torch.no_grad():
        built.model.embed_tokens.weight[7] = 1e30  # its square is infinite
    sequences = torch.from_numpy(np.where(IDS[:96] == 7, 8, IDS[:96]).reshape(6, 16))
    sequences[4, 3] = 7
    windows = Windows(sequences, "windows")
    placement = replace(Pruner(Decoder(built), windows).placement, micro_batch=2)
    with pytest.raises(NumericalError, match=r"layer 0, sequence 4: \d+ of 16 tokens"):
        Pruner(Decoder(built), windows, placement=placement).score()
