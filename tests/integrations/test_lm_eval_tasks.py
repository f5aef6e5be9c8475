"""Tasks of lm-eval, in whose environment this runs: what they say of a model in memory is what lm-eval's ``hf`` says of
the export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunecomp
from prunecomp.errors import OptionError
from tests.integrations.common import CALIBRATION, LAYERS, MODEL, OPTIONS

lm_eval = pytest.importorskip("lm_eval")

LINES = [line for line in (MODEL / "evaluation.txt").read_text().split("\n\n") if len(line) > 200][:6]
FORMS = {
    "choice": (
        "output_type: multiple_choice\ndoc_to_text: start\ndoc_to_choice: ends\ndoc_to_target: 0\n"
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    ),
    "rolling": (
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: page\n'
        "metric_list:\n  - metric: word_perplexity\n"
    ),
    "writing": (
        "output_type: generate_until\ndoc_to_text: start\ndoc_to_target: first\nmetric_list:\n  - metric: exact_match\n"
        '    aggregation: mean\n    higher_is_better: true\ngeneration_kwargs:\n  until: ["."]\n  max_gen_toks: 8\n'
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A task in each form in which lm-eval asks, over a few questions of unequal lengths."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for number, page in enumerate(LINES):
        words = page.split()
        cut = 12 + 5 * number
        ends = [" ".join(words[i : i + 3 + number % 2]) for i in (cut, 2, 5, 8)]
        rows.append({"page": page, "start": " ".join(words[:cut]), "ends": ends, "first": words[cut]})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, form in FORMS.items():
        (folder / f"{name}.yaml").write_text(
            f"task: own_{name}\ndataset_path: json\ntest_split: train\n"
            f"dataset_kwargs:\n  data_files: {folder / 'data.jsonl'}\n{form}"
        )
    return [str(folder / f"{name}.yaml") for name in FORMS]


def theirs(model: Path, files: list[str], shots: int | None) -> dict[str, dict[str, float]]:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks._yaml_loader import load_yaml

    tasks = [load_yaml(file) for file in files]
    hf = HFLM(str(model), dtype="float32", device="cpu", batch_size=1)
    found: dict[str, dict[str, float]] = lm_eval.simple_evaluate(hf, tasks=tasks, num_fewshot=shots)["results"]
    return found


@pytest.mark.parametrize("shots", [None, 2])
def test_scores_are_those_of_hf_on_the_export(files: list[str], exported: Path, shots: int | None) -> None:
    found = prunecomp.profile(
        str(exported), base=str(MODEL), tasks=",".join(files), fewshot=shots, items=10, dtype="float32"
    )
    for profiled, model in zip(found.models, (MODEL, exported), strict=True):
        expected = theirs(model, files, shots)
        assert len(profiled.tasks) == 4
        for one in profiled.tasks:
            # Float32 logits in other batches differ by rounding, at some 1e-6 of a log-likelihood.
            assert one.score == pytest.approx(expected[one.task][f"{one.metric},none"], rel=1e-4), one.task
            assert one.items == len(LINES)
    dense, pruned = ({one.task: one for one in model.tasks} for model in found.models)
    assert pruned["own_rolling"].score > dense["own_rolling"].score
    assert pruned["own_rolling"].dense == dense["own_rolling"].score
    assert pruned["own_rolling"].difference is None
    assert pruned["own_choice"].difference is not None


def test_what_is_not_exported_scores_as_hf_on_its_export(files: list[str], tmp_path: Path) -> None:
    """In a comparison; and in eval, once it is. From float32 weights, which an export does not round."""
    base, tasks = tmp_path / "base", ",".join(files)
    AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).save_pretrained(base)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(base)
    (measured,) = prunecomp.compare(
        base, [LAYERS], str(CALIBRATION), eval={"own": torch.arange(128).view(2, 64)}, metrics="last",
        repairs="joint", tasks=tasks, **OPTIONS,
    ).measurements  # fmt: skip
    made = prunecomp.prune(base, LAYERS, str(CALIBRATION), metric="last", repair="joint", **OPTIONS)
    made.save(tmp_path / "out", verify=False)
    asked = prunecomp.evaluate(tmp_path / "out", tasks=tasks, base=base).tasks
    expected = theirs(tmp_path / "out", files, None)
    assert len(asked) == 4
    for one, again in zip(measured.tasks, asked, strict=True):
        for score in (one.score, again.score):
            assert score == pytest.approx(expected[one.task][f"{one.metric},none"], rel=1e-4), one.task
        assert one.dense == pytest.approx(again.dense, rel=1e-4)


def test_a_run_has_them_in_its_record(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunecomp.evaluation.profile.MAKERS", {})
    result = prunecomp.prune(str(MODEL), LAYERS, str(CALIBRATION), tasks=files[0], limit=2, repair="joint", **OPTIONS)
    dense, pruned = result.record()["profile"]["models"]
    assert [one["items"] for one in pruned["tasks"]] == [2, 2]
    assert [one["dense"] for one in pruned["tasks"]] == [one["score"] for one in dense["tasks"]]


def test_log_likelihoods_are_those_of_hf(files: list[str]) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from prunecomp.evaluation.language import Language
    from prunecomp.evaluation.tasks import _asked

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    pairs = [
        ("", "The whale"), ("The whale ", "swam"), ("The whale", " swam"), ("The whale", " sank at once"),
        ("x " * 3000, "far too long"), (LINES[0][:100], LINES[0][100:140]), (LINES[0][:100], " no"),
    ]  # fmt: skip
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    ours = _asked(Language(model, tokenizer, [])).loglikelihood(asked)
    hf = HFLM(model, tokenizer=tokenizer, batch_size=1).loglikelihood(asked)
    for (log, greedy), (expected, likeliest) in zip(ours, hf, strict=True):
        assert log == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert greedy == likeliest


@pytest.mark.parametrize(
    ("tasks", "message"), [("nosuchtask", "knows no such task"), ("gone.yaml", "no such file"), ("piqa", "made ready")]
)
def test_what_cannot_be_asked_is_told_before_the_work(
    tasks: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("prunecomp.pruning.session.Session.place", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(OptionError, match=f"--tasks {tasks}: .*{message}"):
        prunecomp.prune(str(MODEL), 1, str(CALIBRATION), tasks=tasks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [", "cannot be read as a task"), ("- a list", "cannot be read as a task"),
        ("output_type: x", "it is no task"),
        ("task: own\ndataset_path: json\ndataset_kwargs:\n  data_files: /gone.jsonl\n", "made ready"),
    ],
)  # fmt: skip
def test_a_bad_file_is_told_before_the_work(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunecomp.pruning.session.Session.place", lambda *_: pytest.fail("work was begun"))
    (tmp_path / "bad.yaml").write_text(text)
    tokens, tasks = torch.arange(64).view(2, 32), str(tmp_path / "bad.yaml")
    for call in (
        lambda: prunecomp.evaluate(str(MODEL), tokens, tasks=tasks),
        lambda: prunecomp.compare(str(MODEL), [1], tokens, eval={"own": tokens}, tasks=tasks),
        lambda: prunecomp.curve(str(MODEL), "1-2", tokens, tasks=tasks),
    ):
        with pytest.raises(OptionError, match=f"--tasks .*{message}"):
            call()
