"""Likelihoods against whole forward passes; generation against transformers on the export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunecomp
from prunecomp.checkpoint.apply import applied_plan
from prunecomp.checkpoint.fold import plan_fold
from prunecomp.errors import FoldError
from prunecomp.evaluation.agreement import Standing
from prunecomp.evaluation.generation import write
from prunecomp.evaluation.language import Language, common_prefix
from prunecomp.evaluation.profile import Named, in_use
from prunecomp.evaluation.prompts import PROMPTS
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack, Overlay
from prunecomp.pruning.language import language_of
from tests.models import CASES, build
from tests.seeds import seed
from tests.tolerances import ROUNDINGS

EPS = ROUNDINGS * torch.finfo(torch.float32).eps


def drawn(generator: torch.Generator, *lengths: int) -> list[list[int]]:
    return [torch.randint(2, 101, (length,), generator=generator).tolist() for length in lengths]


def speaking(model: Any, ends: tuple[int, ...] = (1,)) -> Language:
    return Language(model, None, ends)


@torch.no_grad()
def by_hand(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    logits = model(input_ids=torch.tensor([context + continuation]), use_cache=False).logits[0].double()
    log = logits.log_softmax(dim=1)[len(context) - 1 : -1]
    wanted = torch.tensor(continuation)
    return float(log.gather(1, wanted.unsqueeze(1)).sum()), bool((log.argmax(dim=1) == wanted).all())


@pytest.mark.parametrize("shared", [0, 12])
def test_likelihoods_are_those_of_whole_forward_passes(model: Any, shared: int, generator: torch.Generator) -> None:
    """Contexts of several lengths, some alike, with a beginning in common or without; continuations of one token and of
    several; one of them is what the model would write."""
    (beginning,) = drawn(generator, shared)
    contexts = [beginning + rest for rest in drawn(generator, 3, 5, 3, 5, 9)]
    continuations = [drawn(generator, 1, 4, 2) for _ in contexts]
    language = speaking(model, ends=())
    continuations[3][1] = language.generate([contexts[3]], 4)[0]
    found = language.likelihoods(contexts, continuations)
    for context, some, likelihoods in zip(contexts, continuations, found, strict=True):
        for one, likelihood in zip(some, likelihoods, strict=True):
            log, greedy = by_hand(model, context, one)
            assert likelihood.log == pytest.approx(log, rel=40 * EPS)
            assert likelihood.greedy == greedy
    assert found[3][1].greedy


def test_what_is_generated_does_not_depend_on_its_neighbours(model: Any, generator: torch.Generator) -> None:
    """Each token is the likeliest after all before it, up to rounding, though prompts are padded and run together."""
    prompts = drawn(generator, 4, 9, 6, 9, 2)
    answers = speaking(model, ends=()).generate(prompts, 6)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) == 6
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        short = logits.max(dim=1).values - logits.gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1)
        assert float(short.max()) <= 100 * EPS * float(logits.abs().max())


def test_the_settings_of_the_model_have_no_say_and_come_back(generator: torch.Generator) -> None:
    model = build("llama")
    prompts = drawn(generator, 5, 5)
    expected = speaking(model).generate(prompts, 5)
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.max_length = True, 9.0, 5.0, 7
    assert speaking(model).generate(prompts, 5) == expected
    assert model.generation_config is own


def test_an_answer_ends_with_the_first_end_of_text(generator: torch.Generator) -> None:
    model = build("llama")
    prompts = drawn(generator, 5, 5)
    free = speaking(model, ends=()).generate(prompts, 8)
    end = free[0][3]
    answers = speaking(model, ends=(end,)).generate(prompts, 8)
    assert answers[0] == free[0][: free[0].index(end) + 1]
    assert answers[1] == (free[1][: free[1].index(end) + 1] if end in free[1] else free[1])


@pytest.mark.parametrize(
    ("texts", "expected"), [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 4]], 1), ([[5]], 0), ([[1, 2], [3, 4]], 0)]
)
def test_a_common_beginning_is_never_all_of_a_text(texts: list[list[int]], expected: int) -> None:
    assert common_prefix(texts) == expected


def state_of(model: Any) -> dict[str, Any]:
    layers = model.get_submodule(Decoder(model).family.layers)
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "config": model.config.to_dict(),
        "numbers": [getattr(m, "layer_idx", None) for layer in layers for m in layer.modules()],
        "aliases": {name: p.data_ptr() for name, p in model.named_parameters(remove_duplicate=False)},
    }


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("fold", ["up", "down"])
def test_a_plan_that_was_applied_leaves_nothing_behind(case: str, fold: str, generator: torch.Generator) -> None:
    torch.manual_seed(seed())
    model = build(case)
    decoder = Decoder(model)
    weight = decoder.layers[3].mlp.down_proj.weight
    overlay = Overlay({"mlp.down_proj.weight": torch.randn(weight.shape, generator=generator)})
    stack = LayerStack.dense(decoder.num_layers).remove(4, 1.3).remove(1, 0.8).with_overlay(3, overlay)
    before = state_of(model)
    tokens = torch.tensor(drawn(generator, 9))
    with torch.no_grad():
        expected = decoder.logits(decoder.run(stack, tokens))
    with applied_plan(model, stack, plan_fold(decoder, stack, fold)):
        assert model.config.num_hidden_layers == 4
        got = model(input_ids=tokens, use_cache=False).logits.detach()
        assert float((got - expected).norm() / expected.norm()) < 20 * EPS + 3e-4  # tests.tolerances.NORM_EPSILON
        model.generate(tokens, max_new_tokens=3, do_sample=False, attention_mask=torch.ones_like(tokens))
    after = state_of(model)
    assert all(torch.equal(after["weights"][name], tensor) for name, tensor in before["weights"].items())
    assert {k: v for k, v in after.items() if k != "weights"} == {k: v for k, v in before.items() if k != "weights"}


def test_a_plan_that_cannot_be_applied_leaves_nothing_behind() -> None:
    model = build("llama").half()
    decoder = Decoder(model)
    stack = LayerStack.dense(6).remove(1, 1e-30)
    before = state_of(model)
    with pytest.raises(FoldError), applied_plan(model, stack, plan_fold(decoder, stack)):
        pass
    after = state_of(model)
    assert all(torch.equal(after["weights"][name], tensor) for name, tensor in before["weights"].items())
    assert after["modules"] == before["modules"]


@pytest.mark.slow
def test_generation_is_that_of_transformers_on_the_export(reference_model: Path, tmp_path: Path) -> None:
    """One by one, without our batches: the same tokens, but where two are equal up to rounding."""
    tokenizer = AutoTokenizer.from_pretrained(reference_model)
    AutoModelForCausalLM.from_pretrained(reference_model, dtype=torch.float32).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    text = str(reference_model / "calibration.txt")
    result = prunecomp.prune(tmp_path / "base", 3, text, samples=4, seqlen=64, repair="joint")
    result.save(tmp_path / "out", verify=False)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    language = language_of(result.model_source)
    with in_use(Named("pruned", Standing(result.model_source.load(), result.stack, result.placement))):
        written = write(language, PROMPTS[:4], 24)
    for one in written:
        ids = torch.tensor([tokenizer(f"Question: {one.prompt}\nAnswer:")["input_ids"]])
        out = exported.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        theirs = replace(one, tokens=tuple(out.sequences[0, ids.shape[1] :].tolist()))
        same = one.same_as(theirs)
        assert same > 4
        if same < 24:
            top = out.logits[same][0].topk(2).values
            assert float(top[0] - top[1]) <= 100 * EPS * float(top[0].abs())
