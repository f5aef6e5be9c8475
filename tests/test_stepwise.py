"""The pruner driven from outside: each step back is bit for bit where it came from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import prunecomp
from prunecomp.data.windows import Windows
from prunecomp.errors import OptionError
from prunecomp.model.decoder import Decoder
from tests.models import build, draw_tokens
from tests.oracles import iterative
from tests.tolerances import error, relative

Step = tuple[dict[int, float], float, tuple[float, ...]]

CASES: dict[str, tuple[dict[str, Any], list[tuple[int, ...]]]] = {
    "scale": ({}, [(3,), (1,), (4,)]),
    "top": ({"compensation": "lsq"}, [(5,), (4,), (0,)]),
    "blocks": ({"span": 2}, [(2, 3), (0,), (4, 5)]),
    "lsq": ({"compensation": "lsq"}, [(3,), (2,), (5,)]),
    "lsq-blocks": ({"compensation": "lsq", "span": 2}, [(3, 4), (2,)]),
    "ppl": ({"metric": "ppl"}, [(2,), (3,)]),
    "taylor": ({"metric": "taylor", "candidates": range(6)}, [(2,), (4,)]),
}


def here(pruner: prunecomp.Pruner) -> Step:
    return dict(pruner.score()), pruner.loss(), pruner.stack.seams


def brought(model: Any, tokens: Any, options: dict[str, Any], blocks: list[tuple[int, ...]]) -> prunecomp.Pruner:
    pruner = prunecomp.pruner_for(model, tokens, **options)
    for block in blocks:
        pruner.remove(*block)
    return pruner


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("scored", [True, False], ids=["scored-between", "not-scored"])
def test_each_undo_leads_back_to_the_same_bits(generator: torch.Generator, case: str, scored: bool) -> None:
    options, blocks = CASES[case]
    model = build("llama-tied-biased")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = draw_tokens(model, generator, windows=8)
    pruner = prunecomp.pruner_for(model, tokens, **options)
    for block in blocks:
        if scored:
            here(pruner)
        pruner.remove(*block)
    for count in range(len(blocks), -1, -1):
        assert pruner.removed == [layer for block in blocks[:count] for layer in block]
        assert here(pruner) == here(brought(model, tokens, options, blocks[:count]))
        if count:
            assert pruner.undo() == blocks[count - 1]
    for block in blocks:  # and forwards again
        pruner.remove(*block)
    assert here(pruner) == here(brought(model, tokens, options, blocks))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("case", ["scale", "blocks", "lsq"])
def test_a_random_walk_ends_where_the_straight_way_does(generator: torch.Generator, case: str) -> None:
    options, _ = CASES[case]
    model = build("qwen2")
    tokens = draw_tokens(model, generator)
    pruner = prunecomp.pruner_for(model, tokens, **options)
    way: list[int] = []
    for _ in range(25):
        draw = int(torch.randint(0, 5, (), generator=generator))
        if draw < 2 and len(way) < 4:
            left = pruner.stack.alive
            way.append(left[int(torch.randint(0, len(left), (), generator=generator))])
            pruner.remove(way[-1])
        elif draw == 2 and way:
            assert pruner.undo() == (way.pop(),)
        elif draw == 3:
            pruner.score()
        elif draw == 4:
            pruner.loss()
    assert here(pruner) == here(brought(model, tokens, options, [(layer,) for layer in way]))


def test_little_memory_gives_the_same_bits(generator: torch.Generator, tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path)
    tokens = draw_tokens(model, generator)
    for limit in (500_000, 600_000):
        pruner = prunecomp.pruner_for(tmp_path, tokens, device_memory=limit)
        assert pruner.placement.kept_boundaries < 5 or pruner.placement.group_size == 1
        whole = prunecomp.pruner_for(model, tokens)
        expected = here(whole)
        pruner.remove(2)
        pruner.remove(4)
        pruner.undo()
        pruner.undo()
        assert here(pruner) == expected


def test_loss_is_that_of_the_whole_float64_model(model: Any, generator: torch.Generator) -> None:
    tokens, others = draw_tokens(model, generator), draw_tokens(model, generator, windows=3, seqlen=17)
    pruner = prunecomp.pruner_for(model, tokens)
    work, names = copy.deepcopy(model).double(), list(range(6))
    padded = others.clone()
    padded[2, 9:] = -1
    for layer in (None, 2, 4):
        if layer is not None:
            iterative.remove(work, names, layer, pruner.remove(layer).scale)
        assert pruner.loss() == pytest.approx(exact_loss(work, list(tokens)), rel=1e-5)
        assert pruner.loss(others) == pytest.approx(exact_loss(work, list(others)), rel=1e-5)
        assert pruner.loss(Windows(others, "mine")) == pruner.loss(others)
        ragged = [others[0], others[1], others[2, :9]]
        assert pruner.loss(padded) == pytest.approx(exact_loss(work, ragged), rel=1e-5)


def exact_loss(model: Any, sequences: list[torch.Tensor]) -> float:
    with torch.no_grad():
        sums = [float(model(input_ids=s[None], labels=s[None], use_cache=False).loss) * (len(s) - 1) for s in sequences]
    return sum(sums) / sum(len(s) - 1 for s in sequences)


def test_steps_by_the_lowest_score_are_what_prune_does(generator: torch.Generator, tmp_path: Path) -> None:
    model = build("mistral")
    tokens = draw_tokens(model, generator)
    pruner = prunecomp.pruner_for(model, tokens)
    for _ in range(3):
        scores = pruner.score()
        pruner.remove(min(scores, key=lambda layer: (scores[layer], layer)))
    result, expected = pruner.result(), prunecomp.prune(model, 3, tokens, preset="paper")
    assert result.removed == expected.removed == pruner.removed
    assert result.scales == expected.scales
    assert [r.score for r in result.rounds] == [r.score for r in expected.rounds]
    pruner.undo()
    assert len(result.removed) == 3, "a result stays as it is"
    loaded = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "out"))
    decoder = Decoder(model)
    with decoder.evaluating():
        logits = decoder.logits(decoder.run(result.stack, tokens))
        assert error(loaded(input_ids=tokens).logits, logits) < relative(torch.float32)
    result.apply(model)
    assert len(model.model.layers) == 3


def test_an_unscored_removal_is_recorded_without_a_score(generator: torch.Generator, tmp_path: Path) -> None:
    model = build("llama")
    pruner = prunecomp.pruner_for(model, draw_tokens(model, generator))
    pruner.remove(3)
    result = pruner.result(fold="down")
    assert result.rounds[0].score is None
    assert result.options.fold == "down"
    assert AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "out")).config.num_hidden_layers == 5


def test_an_undo_costs_less_than_a_full_run(generator: torch.Generator) -> None:
    model = build("llama")
    pruner = prunecomp.pruner_for(model, draw_tokens(model, generator))

    def spent(action: Any) -> float:
        before = pruner.layer_forwards
        action()
        return pruner.layer_forwards - before

    assert spent(pruner.score) == 6
    assert spent(lambda: pruner.remove(4)) == 0
    assert spent(pruner.score) == 1
    pruner.undo()
    assert spent(pruner.score) == 0, "statistics are taken back, not taken again"
    assert spent(lambda: (pruner.remove(3), pruner.score())) == 2, "the states below the cut are still there"
    pruner.undo()
    assert spent(pruner.loss) <= 3


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([("remove", 2), ("remove", 2)], r"layers \[2\] are not there; the surviving layers are \[0, 1, 3, 4, 5\]"),
        ([("remove", 9)], r"layers \[9\] are not there"),
        ([("remove",)], "no layer was named"),
        ([("remove", 0, 1, 2, 3, 4, 5)], "at least one must stay"),
        ([("remove", 1, 3)], "not neighbours among .* one by one"),
        ([("undo",)], r"call remove\(\) first"),
        ([("remove", 2), ("undo",), ("undo",)], r"call remove\(\) first"),
        ([("result",)], r"call remove\(\) first"),
    ],
)
def test_impossible_steps_say_what_would_be_right(
    generator: torch.Generator, steps: list[tuple[Any, ...]], message: str
) -> None:
    model = build("llama")
    pruner = prunecomp.pruner_for(model, draw_tokens(model, generator), span=2)
    for name, *arguments in steps[:-1]:
        getattr(pruner, name)(*arguments)
    stack = pruner.stack
    name, *arguments = steps[-1]
    with pytest.raises(OptionError, match=message):
        getattr(pruner, name)(*arguments)
    assert pruner.stack is stack


def test_neighbours_need_a_pruner_that_looks_across_layers(generator: torch.Generator) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    pruner = prunecomp.pruner_for(model, tokens)
    with pytest.raises(OptionError, match="make the pruner with span=3"):
        pruner.remove(1, 2, 3)
    assert len(pruner.stack.alive) == 6
    wide = prunecomp.pruner_for(model, tokens, span=2)
    assert wide.remove(1, 2, 3).scale > 0  # every span is known where one is


def test_a_bare_pruner_has_no_result(generator: torch.Generator) -> None:
    model = build("llama")
    pruner = prunecomp.Pruner(Decoder(model), Windows(draw_tokens(model, generator), "test"))
    pruner.remove(2)
    with pytest.raises(OptionError, match="use pruner_for"):
        pruner.result()
    with pytest.raises(OptionError, match="one must stay"):
        prunecomp.pruner_for(model, draw_tokens(model, generator), span=6)
