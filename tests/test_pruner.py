"""The loop against the float64 oracle, and the promises of the cache."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import prunecomp
from prunecomp.data.windows import Windows
from prunecomp.errors import NumericalError, OptionError
from prunecomp.model.decoder import Decoder
from prunecomp.pruning.pruner import Pruner
from prunecomp.pruning.rounds import choose_candidates, lowest
from tests.models import build, draw_tokens
from tests.oracles import iterative
from tests.tolerances import SCALE


def run(model: Any, tokens: torch.Tensor, layers: int, **options: Any) -> prunecomp.PruneResult:
    return prunecomp.prune(model, layers, tokens, **options, preset="paper")


@pytest.mark.parametrize("one_shot", [False, True], ids=["iterative", "one-shot"])
@pytest.mark.parametrize("compensation", ["scale", "none"])
def test_choices_and_scales_agree_with_the_oracle(
    model: Any, generator: torch.Generator, one_shot: bool, compensation: str
) -> None:
    tokens = draw_tokens(model, generator)
    result = run(model, tokens, 4, one_shot=one_shot, compensation=compensation)
    removed, scales, _ = iterative.prune(model, tokens, 4, one_shot=one_shot, compensate=compensation == "scale")
    assert result.removed == removed
    np.testing.assert_allclose(result.scales, scales, rtol=SCALE)


@pytest.mark.parametrize(("layers", "seqlen"), [(5, 128)])
def test_choices_and_scales_agree_with_the_oracle_on_the_bundled_model(
    reference_model: Any, layers: int, seqlen: int
) -> None:
    result = prunecomp.prune(
        reference_model,
        layers,
        reference_model / "calibration.txt",
        samples=6,
        seqlen=seqlen,
        dtype="float32",
        preset="paper",
    )
    model = result.model_source.load().model
    removed, scales, _ = iterative.prune(model, result.calibration.tokens, layers)
    assert result.removed == removed
    np.testing.assert_allclose(result.scales, scales, rtol=SCALE)


def test_weights_and_training_mode_stay_as_they_were(model: Any, generator: torch.Generator) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    run(model, draw_tokens(model, generator), 3)
    assert model.training
    assert len(model.model.layers) == 6
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cached_rounds_equal_full_reruns_bit_for_bit(
    model: Any, generator: torch.Generator, dtype: torch.dtype
) -> None:
    model.to(dtype)
    tokens = draw_tokens(model, generator, windows=7, seqlen=33)
    cached, full = run(model, tokens, 4), run(model, tokens, 4, cache=False)
    assert cached.removed == full.removed
    assert cached.scales == full.scales
    assert [r.scores for r in cached.rounds] == [r.scores for r in full.rounds]
    assert cached.layer_forwards < full.layer_forwards


def test_only_layers_above_each_cut_are_run_again(model: Any, generator: torch.Generator) -> None:
    heads: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: heads.append(1))
    result = run(model, draw_tokens(model, generator), 4)
    alive = list(range(6))
    expected = 6
    for layer in result.removed[:-1]:
        p = alive.index(layer)
        alive.remove(layer)
        expected += len(alive) - p
    assert result.layer_forwards == expected
    assert sum(r.layer_forwards for r in result.rounds) == expected
    assert not heads, "scoring must not run the head"


def test_layer_forwards_are_counted_where_they_happen(model: Any, generator: torch.Generator) -> None:
    calls: list[int] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, args, output: calls.append(len(output) * (output.shape[1] == 24)))
    result = run(model, draw_tokens(model, generator, windows=5, seqlen=24), 3)  # other rows are of a check beforehand
    assert sum(calls) == result.layer_forwards * 5


def test_one_shot_runs_the_model_once(model: Any, generator: torch.Generator) -> None:
    assert run(model, draw_tokens(model, generator), 4, one_shot=True).layer_forwards == 6


def test_ties_go_to_the_lower_layer() -> None:
    assert lowest({0: 0.5, 1: 0.25, 2: 0.25}, [2, 1, 0]) == 1


def test_identical_layers_are_removed_from_below(generator: torch.Generator) -> None:
    model = build("llama")
    with torch.no_grad():
        for layer in model.model.layers:  # layers that write nothing all have block influence zero
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    assert run(model, draw_tokens(model, generator), 3).removed == [0, 1, 2]


def test_keep_and_candidates_bound_the_choice(model: Any, generator: torch.Generator) -> None:
    tokens = draw_tokens(model, generator)
    assert set(run(model, tokens, 3, keep=[0, 5]).removed) <= {1, 2, 3, 4}
    assert set(run(model, tokens, 2, candidates=[1, 3, 4]).removed) <= {1, 3, 4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 6}, "at most 5 can be removed"),
        ({"layers": 3, "candidates": [3, 4]}, "only 2 of the model's 6"),
        ({"layers": 1, "keep": [6]}, "--keep"),
        ({"layers": 0}, "at least 1"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        choose_candidates(6, **arguments)


def test_a_nonfinite_activation_names_layer_and_sequence(generator: torch.Generator) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    tokens[tokens == 7] = 8
    tokens[3, 5] = 7
    layer = model.model.layers[2]
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = 3e38  # finite in the embedding, overflows in the first square
    with pytest.raises(NumericalError, match=r"layer 0, sequence 3\b"):
        run(model, tokens, 1)
    assert layer is model.model.layers[2]


def test_zero_vectors_are_counted_with_cosine_one_half(generator: torch.Generator) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator, windows=2, seqlen=8)
    tokens[tokens == 9] = 10
    tokens[1, 0] = 9
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = 0.0
    pruner = Pruner(Decoder(model), Windows(tokens, "test"))
    pruner.score()
    assert pruner.statistics.of(0).zero_rows.sum() == 1
    states = [iterative.boundary_states(model.double(), t) for t in tokens]
    cosines = [
        float(torch.nn.functional.cosine_similarity(x, y, dim=0)) if x.any() else 0.5
        for s in states
        for x, y in zip(s[0], s[1], strict=True)
    ]
    assert pruner.score()[0] == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-6)


def test_the_record_is_json_and_complete(model: Any, generator: torch.Generator) -> None:
    tokens = draw_tokens(model, generator)
    record = json.loads(json.dumps(run(model, tokens, 2, eval=tokens).record()))
    assert record["removed"] == [r["layer"] for r in record["rounds"]]
    assert len(record["rounds"][1]["scores"]) == 5
    assert record["perplexity"]["pruned"] > 1
    assert record["calibration"]["digest"] == run(model, tokens, 1).calibration.digest


def test_perplexity_equals_the_loss_of_transformers(model: Any, generator: torch.Generator) -> None:
    tokens = draw_tokens(model, generator, windows=3)
    with torch.no_grad():
        losses = [float(model(input_ids=t[None], labels=t[None]).loss) for t in tokens]
    expected = np.exp(np.mean(losses))
    assert prunecomp.evaluate(model, tokens) == pytest.approx(expected, rel=1e-5)


def test_score_changes_nothing_and_equals_the_first_round(model: Any, generator: torch.Generator) -> None:
    tokens = draw_tokens(model, generator)
    first = run(model, tokens, 1).rounds[0]
    scored = prunecomp.score(model, tokens)
    assert scored.scores == first.scores
    assert scored.scales[first.layer] == first.scale
