"""lm-eval, in whose environment this runs: the model that it evaluates is what our command line exports."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integrations.common import CALIBRATION, LAYERS, MODEL, OPTIONS, example

lm_eval = pytest.importorskip("lm_eval")


def test_the_model_is_what_the_command_line_exports(
    exported: Path, unrepaired: Path, check_equal: Callable[..., None]
) -> None:
    from prunecomp.integrations.lm_eval import PrunedLM

    found = PrunedLM(str(MODEL), layers=LAYERS, calibration=str(CALIBRATION), batch_size=1, **OPTIONS)
    check_equal("in memory", found.model.state_dict(), exported, unrepaired)
    assert found.model.config.num_hidden_layers == 16 - LAYERS
    assert found.result.removed


def test_a_misspelt_argument_is_named() -> None:
    from prunecomp.integrations.lm_eval import PrunedLM

    with pytest.raises(TypeError, match="did you mean calibration"):
        PrunedLM(str(MODEL), layers=LAYERS, calibratoin="x")


def test_its_command_line_measures_what_it_measures_of_the_export(
    exported: Path, row: Callable[..., None], checkout: Path
) -> None:
    task = checkout / "tasks"
    task.mkdir()
    lines = [line for line in (MODEL / "evaluation.txt").read_text().split("\n\n") if len(line) > 200][:3]
    (checkout / "data.jsonl").write_text("".join(json.dumps({"page": line}) + "\n" for line in lines))
    (task / "own.yaml").write_text(
        "task: own\ndataset_path: json\noutput_type: loglikelihood_rolling\ntest_split: train\n"
        f"dataset_kwargs:\n  data_files: {checkout / 'data.jsonl'}\n"
        'doc_to_text: ""\ndoc_to_target: page\nmetric_list:\n  - metric: word_perplexity\n'
    )
    words = shlex.split(example("lm-eval", "").replace("lambada_openai", "own"))[1:]
    given, name = (words.index(option) + 1 for option in ("--model_args", "--model"))
    found = []
    for model, arguments in (
        ("prunecomp", words[given]),
        ("hf", f"pretrained={exported}"),
        ("hf", f"pretrained={MODEL}"),
    ):
        words[name], words[given], out = model, arguments, checkout / str(len(found))
        asked = [*words, "--include_path", str(task), "--output_path", str(out)]
        subprocess.run([sys.executable, *asked], check=True, capture_output=True)
        (file,) = out.rglob("results*.json")
        found.append(json.loads(file.read_text())["results"]["own"]["word_perplexity,none"])
    ours, theirs, dense = found
    row(
        "the page's command", "word perplexity, relative to that of hf on the export", abs(ours / theirs - 1), 0.0,
        abs(ours / dense - 1), values=f"{ours:.6f} and {theirs:.6f}",
    )  # fmt: skip
