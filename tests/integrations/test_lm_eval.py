"""lm-eval, in whose environment this runs: the model that it evaluates is what our command line exports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integrations.common import CALIBRATION, LAYERS, MODEL, OPTIONS, ROOT, check_equal, cli_export, exported

lm_eval = pytest.importorskip("lm_eval")
__all__ = ["exported"]


def test_the_model_is_what_the_command_line_exports(exported: dict[str, torch.Tensor]) -> None:
    from prunecomp.integrations.lm_eval import PrunedLM

    found = PrunedLM(str(MODEL), layers=LAYERS, calibration=str(CALIBRATION), batch_size=1, **OPTIONS)
    check_equal(found.model.state_dict(), exported)
    assert found.model.config.num_hidden_layers == 16 - LAYERS
    assert found.result.removed


def test_a_misspelt_argument_is_named() -> None:
    from prunecomp.integrations.lm_eval import PrunedLM

    with pytest.raises(TypeError, match="did you mean calibration"):
        PrunedLM(str(MODEL), layers=LAYERS, calibratoin="x")


def test_its_command_line_measures_what_it_measures_of_the_export(tmp_path: Path) -> None:
    task = tmp_path / "tasks"
    task.mkdir()
    lines = [line for line in (MODEL / "evaluation.txt").read_text().split("\n\n") if len(line) > 200][:3]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"page": line}) + "\n" for line in lines))
    (task / "own.yaml").write_text(
        "task: own\ndataset_path: json\noutput_type: loglikelihood_rolling\ntest_split: train\n"
        f"dataset_kwargs:\n  data_files: {tmp_path / 'data.jsonl'}\n"
        'doc_to_text: ""\ndoc_to_target: page\nmetric_list:\n  - metric: word_perplexity\n'
    )
    out = cli_export(tmp_path / "out")
    arguments = f"pretrained={MODEL},layers={LAYERS},calibration={CALIBRATION}," + ",".join(
        f"{name}={value}" for name, value in OPTIONS.items()
    )
    found = []
    for model, given in (("prunecomp", arguments), ("hf", f"pretrained={out}")):
        subprocess.run(
            [sys.executable, "-m", "prunecomp.integrations.lm_eval", "--model", model, "--model_args", given, "--tasks",
             "own", "--include_path", str(task), "--output_path", str(tmp_path / model), "--device", "cpu"],
            check=True, capture_output=True, cwd=ROOT,
        )  # fmt: skip
        (file,) = (tmp_path / model).rglob("results*.json")
        found.append(json.loads(file.read_text())["results"]["own"]["word_perplexity,none"])
    assert found[0] == found[1]
