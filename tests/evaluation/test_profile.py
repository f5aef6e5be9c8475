"""The profile as a whole: what it holds, what it leaves out and why, and how it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunecomp
from prunecomp.errors import OptionError, PrunecompWarning
from prunecomp.evaluation import profile as module
from prunecomp.evaluation.generation import Written, summed_up
from prunecomp.evaluation.items import MAKERS
from prunecomp.evaluation.language import Language
from prunecomp.evaluation.probes import PRODUCTION, RECOGNITION, Answers, at_chance, beside_dense
from prunecomp.model.source.folder import FolderSource
from prunecomp.pruning.language import language_of
from prunecomp.report.profile import notes, profile_markdown
from tests.asking import heard
from tests.command_line import invoke
from tests.situations.data import model as small_model
from tests.situations.data import save

__all__ = ["heard"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two probes and two prompts."""
    monkeypatch.setattr(module, "MAKERS", {name: MAKERS[name] for name in ("add 1 digit", "json")})
    monkeypatch.setattr(module, "PROMPTS", module.PROMPTS[:2])


def test_a_model_beside_its_base_and_alone(short: None, reference_model: Path) -> None:
    text = {"own": str(reference_model / "evaluation.txt")}
    options: dict[str, Any] = {"items": 10, "seqlen": 128, "dtype": "float32"}
    found = prunecomp.profile(reference_model, base=reference_model, **options)
    assert [one.name for one in found.models] == ["dense", "model"]
    dense, same = found.models
    assert dense.written == same.written
    assert same.generation is not None
    assert same.generation.identical == 1.0
    assert [probe.score for probe in same.probes] == [probe.dense for probe in dense.probes]
    assert len(dense.probes) + len(found.at_chance) == 4
    assert json.loads(json.dumps(found.record()))["models"][0]["removed"] == []
    model = AutoModelForCausalLM.from_pretrained(reference_model)
    alone = prunecomp.profile(model, {"own": prunecomp_tokens(text["own"], reference_model)}, items=10)
    assert alone.left_out is not None
    assert "tokenizer" in alone.left_out
    assert alone.models[0].texts["own"].windows == 3
    assert alone.models[0].generation is None
    assert "no tokenizer" in profile_markdown(alone)


def prunecomp_tokens(file: str, folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(Path(file).read_text()[:4000], return_tensors="np")["input_ids"][0]
    return ids[: 3 * 64].reshape(3, 64)


def test_a_streamed_model_says_that_it_cannot_generate(reference_model: Path) -> None:
    text = prunecomp_tokens(str(reference_model / "evaluation.txt"), reference_model)
    found = prunecomp.profile(reference_model, {"own": text}, device_memory=20_000_000, dtype="float32")
    assert found.left_out is not None
    assert "streamed" in found.left_out
    whole = prunecomp.profile(AutoModelForCausalLM.from_pretrained(reference_model).float(), {"own": text})
    assert found.models[0].texts == whole.models[0].texts


def test_streamed_models_agree_with_the_dense_one_as_resident_ones_do(reference_model: Path) -> None:
    text = prunecomp_tokens(str(reference_model / "evaluation.txt"), reference_model)
    runs = [
        prunecomp.prune(
            reference_model,
            2,
            text,
            eval=text,
            compensation="scale",
            dtype="float32",
            device_memory=memory,
            preset="paper",
        ).record()
        for memory in (None, 20_000_000)
    ]
    assert [run["streamed"] for run in runs] == [False, True]
    assert runs[0]["perplexity"] == runs[1]["perplexity"]
    agreement = runs[0]["perplexity"]["agreement"]
    assert agreement["kl"]["value"] > 1e-3
    assert 0 < agreement["top1"]["value"] < 1


@pytest.mark.slow
def test_the_command_line_asks_for_it(short: None, reference_model: Path, tmp_path: Path) -> None:
    base = [str(reference_model), "--dtype", "float32"]
    made = invoke(
        *["prune", *base, "--layers", "2", "--calibration", str(reference_model / "calibration.txt"), "--samples", "2",
         "--seqlen", "64", "--profile", "--no-verify", "--out", str(tmp_path / "out")],
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "answers to 2 chat prompts" in made.output
    record = json.loads((tmp_path / "out" / "prunecomp.json").read_text())["profile"]
    assert [one["name"] for one in record["models"]] == ["dense", "pruned"]
    assert record["models"][1]["removed"] == sorted(
        json.loads((tmp_path / "out" / "prunecomp.json").read_text())["removed"]
    )
    seen = invoke(*["profile", str(tmp_path / "out"), "--dtype", "float32", "--base", base[0], "--json"])
    assert seen.exit_code == 0, seen.output
    beside = json.loads(seen.stdout)["profile"]["models"][1]
    assert beside["generation"]["tokens"] > 0
    for words in (["--base", base[0]], []):
        refused = invoke("eval", base[0], *words)
        assert refused.exit_code == 2


@pytest.mark.parametrize("items", [9, 1.5, "50"])
def test_too_few_problems_are_refused(items: Any, reference_model: Path) -> None:
    with pytest.raises(OptionError, match="items"):
        prunecomp.profile(reference_model, items=items)


def test_probes_at_chance_are_named_and_left_out() -> None:
    """7 of 12 by recognition is better than a guess (the chance is 0.014), 6 of 12 is not (0.054)."""
    hits = [tuple(i < n for i in range(12)) for n in (7, 6, 0, 1)]
    dense = [
        Answers("a", RECOGNITION, hits[0], 1 / 4),
        Answers("b", RECOGNITION, hits[1], 1 / 4),
        Answers("a", PRODUCTION, hits[2], 1 / 12),
        Answers("b", PRODUCTION, hits[3], 1 / 12),
    ]
    assert at_chance(dense) == ["b (recognition)", "a (production)", "b (production)"]
    (one,) = beside_dense(dense, [*dense[:1], *dense[:1], *dense[2:]], seed=0)
    assert (one.probe, one.dense, one.score) == ("a", 7 / 12, 7 / 12)


def test_repetition_and_first_difference_are_counted() -> None:
    def written(*tokens: int, ended: bool = False) -> Written:
        return Written("", "", tokens, ended)

    assert written(1, 2, 3).repetition == 0.0
    assert written(1, 2, 3, 4, 5).repetition == 0.0
    assert written(1, 2, 1, 2, 1, 2, 1).repetition == 0.5  # 1212 2121 1212 2121
    assert written(1, 2, 3).same_as(written(1, 2, 4)) == 2
    assert written(1, 2).same_as(written(1, 2, 4)) == 2
    one = summed_up([written(1, 2, ended=True), written(5)], [written(1, 2), written(6)])
    assert (one.tokens, one.ended, one.until_different, one.identical) == (1.5, 0.5, 1.0, 0.5)


def test_notes_say_what_is_left_out() -> None:
    found = module.Profile([], ["add"], "it is late", 10, 0)
    assert notes(found) == [
        "No generation, no probes and no tasks: it is late.",
        "Left out, for the dense model is no better than a guess: add.",
    ]


def spoilt_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('not for you') }}")


def spoilt_generation(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')


SPOILT: dict[str, tuple[dict[str, Any], Callable[[Path], None] | None, str]] = {
    "a template that refuses": ({}, spoilt_template, "not for you"),
    "an end that is no token": ({}, spoilt_generation, "eos_token_id is '</s>'"),
    "fewer rows than the tokenizer has tokens": ({"vocab_size": 500}, None, "the model has rows for 500"),
    "a short table of positions": (
        {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 32},
        None,
        "the model has positions for 32 tokens",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_cannot_be_asked_is_told_before_the_work(what: str, short: None, heard: list[int], tmp_path: Path) -> None:
    fields, spoil, reason = SPOILT[what]
    folder = save(small_model(**fields), tmp_path / "model")
    if spoil is not None:
        spoil(folder)
    tokens = torch.randint(2, 500, (2, 16), generator=torch.Generator().manual_seed(0))
    with pytest.raises(OptionError, match=f"--target task:copy=-5%: .*{reason}"):
        prunecomp.prune(folder, None, tokens, target="task:copy=-5%", repair="none", items=10)
    with pytest.raises(OptionError, match=f"--tasks own: .*{reason}"):  # which are asked with the probes
        prunecomp.prune(folder, 1, tokens, tasks="own", preset="paper")
    assert not heard
    with pytest.warns(PrunecompWarning, match=f"--profile: no generation and no probes: .*{reason}"):
        result = prunecomp.prune(folder, 1, tokens, profile=True, items=10, preset="paper")
    assert result.profile is not None
    assert reason in str(result.profile.left_out)
    assert result.profile.models[1].generation is None


def test_an_end_that_the_tokenizer_puts_behind_a_text_is_not_read(reference_model: Path) -> None:
    plain = AutoTokenizer.from_pretrained(reference_model)
    ending = AutoTokenizer.from_pretrained(reference_model)
    end = ending.eos_token
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, ending.eos_token_id)]
    )
    assert ending("1 + 2 =")["input_ids"][-1] == ending.eos_token_id
    model = small_model()
    one, other = (Language(model, tokenizer, [1]) for tokenizer in (plain, ending))
    assert one.encode_pair("1 + 2 =", " 3") == other.encode_pair("1 + 2 =", " 3")


def test_ends_that_a_model_of_the_hub_states_beside_its_config_count(tmp_path: Path) -> None:
    folder = save(small_model(), tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 9, 99999]}')  # the last is never written
    source = FolderSource(folder, "an/id", "float32", "cpu", False)
    assert sorted(language_of(source).ends) == [0, 1, 5, 9]
