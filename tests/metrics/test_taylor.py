"""Taylor+ layer by layer against a whole backward pass in float64, and what it promises of memory, bits and flags."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch

import prunecomp
from prunecomp.data.windows import Windows
from prunecomp.engine import backward
from prunecomp.engine.backward import backward_demand, saliences
from prunecomp.engine.placement import Memory, Placement, model_shape, place
from prunecomp.engine.retention import _reversed
from prunecomp.engine.run import Run
from prunecomp.engine.states import Tier
from prunecomp.errors import NumericalError, OptionError
from prunecomp.metrics.magnitude import is_weight
from prunecomp.model.decoder import Decoder, call_layer
from prunecomp.model.families import families
from prunecomp.model.stack import Overlay
from prunecomp.pruning.pruner import Pruner
from prunecomp.pruning.rounds import run_rounds
from tests.engine.test_ragged import PackingDecoder, ragged
from tests.forks import free_port
from tests.models import build, draw_tokens
from tests.oracles import taylor
from tests.tolerances import ROUNDINGS, SCALE

CPU = torch.device("cpu")


def room(boundaries: int, windows: int = 2) -> Placement:
    """Everything on a CPU, in micro-batches, with room for so many boundaries."""
    return Placement(windows, None, {Tier.device: boundaries}, Tier.device, {})


# SCALE: a product w * g carries some ROUNDINGS * eps = 4e-6 of its size. Sums of absolute values do not cancel; sums
# over the five sequences before them do, by no more than sqrt(5) on average: 9e-6.
def test_choices_and_scores_agree_with_a_whole_backward_in_float64(model: Any, generator: torch.Generator) -> None:
    tokens = draw_tokens(model, generator)
    candidates = [0, 1, 2, 4]  # the layers on top stay, so that gradients pass seams
    result = prunecomp.prune(model, 3, tokens, metric="taylor", candidates=candidates, preset="paper")
    removed, rounds = taylor.prune(model, list(tokens), 3, set(candidates))
    assert result.removed == removed
    for ours, theirs in zip(result.rounds, rounds, strict=True):
        assert ours.scores == pytest.approx(theirs, rel=SCALE)
        assert ours.scores.keys() == theirs.keys()


@pytest.mark.parametrize("packed", [False, True])
def test_windows_of_different_lengths_each_count_by_their_mean_loss(generator: torch.Generator, packed: bool) -> None:
    model = build("qwen2")
    windows = ragged(model, generator)
    sequences = [row[:n] for row, n in zip(windows.tokens, windows.lengths.tolist(), strict=True)]
    decoder = (PackingDecoder if packed else Decoder)(model)
    expected = taylor.scores(copy.deepcopy(model).double().requires_grad_(), sequences)
    scores = Pruner(decoder, windows, metric="taylor", placement=room(6)).score()
    # In a window of two tokens one product is all there is: float32 cancels more than in longer ones.
    np.testing.assert_allclose([scores[p] for p in range(6)], expected, rtol=3 * SCALE)
    if not packed:
        other = windows.tokens.clone()
        other[torch.arange(24) >= windows.lengths.unsqueeze(1)] = 3
        padded = Pruner(decoder, Windows(other, "test", windows.lengths), metric="taylor", placement=room(6))
        assert padded.score() == scores, "what stands in the padding does not matter"


def test_every_budget_gives_the_same_bits_for_the_work_that_it_must_cost(generator: torch.Generator) -> None:
    model = build("llama", num_hidden_layers=9, hidden_size=16, intermediate_size=24)
    windows = Windows(draw_tokens(model, generator, windows=5, seqlen=8), "test")
    outcomes = {}
    for cache, boundaries in [(False, 9), *((True, b) for b in range(9, 1, -1))]:
        pruner = Pruner(
            Decoder(model), windows, metric="taylor", placement=room(boundaries), cache=cache, candidates=range(8)
        )
        outcomes[cache, boundaries] = run_rounds(pruner, 4, list(range(8)), one_shot=False)
    for (cache, boundaries), rounds in outcomes.items():
        full = outcomes[True, 9]
        assert [r.scores for r in rounds] == [r.scores for r in full], (cache, boundaries)
        assert [(r.layer, r.scale) for r in rounds] == [(r.layer, r.scale) for r in full]
        # Forward, once more with gradients, and what binomial checkpointing with one place for the gradient costs.
        assert rounds[0].layer_forwards == 9 + 9 + _reversed(8, boundaries - 1)[0] - 8
        assert all(r.layer_forwards >= f.layer_forwards for r, f in zip(rounds, full, strict=True))
    assert _reversed(8, 4)[0] - 8 < 8, "with half the room no more than a forward pass is run again"
    alive = list(range(9))
    for earlier, later in pairwise(full):
        cut = alive.index(earlier.layer)
        alive.remove(earlier.layer)
        assert later.layer_forwards == len(alive) - cut + len(alive), "below a cut nothing is run but for gradients"
    with pytest.raises(OptionError, match="room for two boundaries of all windows at once"):
        Pruner(Decoder(model), windows, metric="taylor", placement=room(1))


@pytest.mark.parametrize("on_disk", [False, True], ids=["in-memory", "states-on-disk"])
def test_a_streamed_run_equals_a_resident_one_bit_for_bit(
    generator: torch.Generator, saved: Callable[..., Path], tmp_path: Path, on_disk: bool
) -> None:
    model = build("qwen3")
    tokens = draw_tokens(model, generator)
    base = saved(model)
    shape = model_shape(model, families.find("qwen3"), torch.float32)
    full = place(shape, 5, 24, Memory(10**12), CPU, demand=backward_demand(shape)).peak_nbytes[Tier.device]
    boundary = 5 * 24 * shape.hidden_size * shape.itemsize
    limit = full - 4 * shape.layer_nbytes - 6 * boundary + (0 if on_disk else 4 * boundary)
    plain = prunecomp.prune(base, 2, tokens, metric="taylor", candidates=range(5), preset="paper")
    streamed = prunecomp.prune(
        base,
        2,
        tokens,
        metric="taylor",
        candidates=range(5),
        device_memory=limit,
        disk=tmp_path if on_disk else None,
        preset="paper",
    )
    assert plain.placement.group_size is None
    assert plain.placement.kept_boundaries == 6  # every state, and the gradient
    assert streamed.placement.group_size == 1
    assert streamed.placement.kept_boundaries == (6 if on_disk else 3)
    assert [r.scores for r in streamed.rounds] == [r.scores for r in plain.rounds]
    assert (streamed.removed, streamed.scales) == (plain.removed, plain.scales)


def test_the_callers_model_comes_back_as_it_was(generator: torch.Generator) -> None:
    model = build("llama-tied-biased").train()
    tokens = draw_tokens(model, generator, windows=2)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 > 0)
    before = {name: (p, p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    prunecomp.score(model, tokens, metric="taylor")
    assert model.training
    for name, parameter in model.named_parameters():
        same, values, flag = before[name]
        assert parameter is same
        assert torch.equal(parameter, values)
        assert (parameter.requires_grad, parameter.grad) == (flag, None)


def test_weights_that_stand_in_are_the_ones_scored(generator: torch.Generator) -> None:
    model = build("llama")
    windows = Windows(draw_tokens(model, generator), "test")
    name = "mlp.down_proj.weight"
    weight = torch.randn(model.model.layers[2].get_parameter(name).shape, generator=generator)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.model.layers[2].get_parameter(name).copy_(weight)
    runs = [Run(Decoder(one), windows, room(6), backward=True) for one in (model, changed)]
    runs[0].replace(2, Overlay({name: weight}))
    for run in runs:
        run.remove([4], 1.25)
        run.update(run.shards[0])
    mine, expected = (saliences(run, [1, 2, 3], is_weight) for run in runs)
    assert mine == expected
    before = Run(Decoder(model), windows, room(6), backward=True)
    before.update(before.shards[0])
    assert saliences(before, [2], is_weight)[2] != mine[2]


def test_sums_reach_over_all_parts_before_their_absolute_values_are_taken(generator: torch.Generator) -> None:
    model = build("mistral").double()
    windows = Windows(draw_tokens(model, generator), "test")
    found = []
    for shards in (1, 3):
        run = Run(Decoder(model), windows, room(6), shards=shards, backward=True)
        for shard in run.shards:
            run.update(shard)
        found.append(saliences(run, range(6), is_weight))
    assert found[1] == pytest.approx(found[0], rel=1e-6)  # norms compute in float32 whatever the model's dtype


def test_one_layer_is_in_memory_at_a_time(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    windows = Windows(draw_tokens(model, generator), "test")
    pruner = Pruner(Decoder(model), windows, metric="taylor", placement=room(6))
    a_layer = {name: p for name, p in model.model.layers[0].named_parameters() if is_weight(name)}
    seen: dict[int, ref[torch.Tensor]] = {}
    most: list[int] = []
    salience = backward.weight_salience

    def alive() -> int:
        return sum(tensor.nbytes for one in seen.values() if (tensor := one()) is not None)

    def watched(w: torch.Tensor, g: torch.Tensor, acc: torch.Tensor) -> torch.Tensor:
        seen.update({id(tensor): ref(tensor) for tensor in (g, acc)})
        most.append(alive())
        return salience(w, g, acc)

    def made(cls: Any, *arguments: Any) -> Any:
        assert not alive(), "the layer before has been dropped"
        return make(cls, *arguments)

    make = backward._Layer.of.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(backward._Layer, "of", classmethod(made))
    monkeypatch.setattr(backward, "weight_salience", watched)
    pruner.score()
    assert len(most) == 6 * 3 * len(a_layer)
    assert max(most) == 2 * sum(p.nbytes for p in a_layer.values()), "gradients and sums of one layer"
    assert not alive()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_asked_for_holds_what_a_layer_saves_for_its_backward(dtype: torch.dtype) -> None:
    model = build("llama", hidden_size=64, intermediate_size=224).to(dtype)
    decoder = Decoder(model)
    tokens = torch.zeros(2, 32, dtype=torch.int64)
    stream, arguments = decoder.enter(tokens)
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = call_layer(model.model.layers[0], stream.detach().requires_grad_(), arguments[0])
    for parameter in model.parameters():
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    shape = model_shape(model, decoder.family, dtype)
    weights = sum(p.numel() for p in model.model.layers[0].parameters())
    held = backward_demand(shape).nbytes(tokens.numel())
    assert y.requires_grad
    # Beside what is saved, the MLP's gradients are there when it is gone through: three of its widest rows.
    passing = 3 * tokens.numel() * 224 * dtype.itemsize
    assert weights * (dtype.itemsize + 4) + sum(saved.values()) + passing <= held + shape.activation_nbytes(64)


def test_only_candidates_are_scored_and_nothing_below_them_is_differentiated(generator: torch.Generator) -> None:
    model = build("llama", num_hidden_layers=10)
    calls = [0] * 10
    tokens = draw_tokens(model, generator, seqlen=24)  # other rows are of a check beforehand

    def count(number: int, output: torch.Tensor) -> None:
        calls[number] += output.shape[1] == 24

    for number, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda module, args, output, number=number: count(number, output))
    result = prunecomp.prune(model, 1, tokens, metric="taylor", preset="paper")
    assert set(result.rounds[0].scores) == {4, 5, 6, 7}
    assert calls == [1] * 4 + [2] * 6
    assert result.layer_forwards == sum(calls)
    with pytest.raises(OptionError, match="only 4 of the model's 10 layers are candidates"):
        prunecomp.prune(model, 4, draw_tokens(model, generator), metric="taylor", preset="paper")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_come_close(generator: torch.Generator, dtype: torch.dtype) -> None:
    model = build("llama").to(dtype)
    tokens = draw_tokens(model, generator, windows=20)
    # Of the weights as they are stored: what is asked is how well they are computed with.
    exact = prunecomp.score(copy.deepcopy(model).double(), tokens, metric="taylor").scores
    scores = prunecomp.score(model, tokens, metric="taylor").scores
    # ROUNDINGS * eps of each product; most of it cancels in the sum over weights, and a quarter is left to bound.
    assert scores == pytest.approx(exact, rel=ROUNDINGS / 4 * torch.finfo(dtype).eps)


def test_compiled_layers_are_not_compiled_anew_for_the_backward(generator: torch.Generator) -> None:
    model = build("llama")
    decoder = Decoder(model)

    def compiled(*arguments: Any) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return call_layer(*arguments)

    decoder._call = compiled
    scores = Pruner(decoder, Windows(draw_tokens(model, generator), "test"), metric="taylor", placement=room(3)).score()
    assert len(scores) == 6


def test_gradients_that_are_not_finite_name_the_layer(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    monkeypatch.setattr(backward, "head_gradient", lambda decoder, batch, stream, boost: stream * torch.inf)
    with pytest.raises(NumericalError, match="layer 5: its gradients are not finite"):
        prunecomp.score(model, draw_tokens(model, generator), metric="taylor")


PROCESS = """
import json, sys
import numpy as np
import prunecomp
from prunecomp.engine.parallel import process_group

with process_group("cpu"):
    for options in json.loads(sys.argv[3]):
        result = prunecomp.prune(sys.argv[1], 2, np.load(sys.argv[2]), dtype="float32", preset="paper", **options)
        print(json.dumps([result.removed, result.scales, [list(r.scores.values()) for r in result.rounds]]))
"""


@pytest.mark.slow
def test_several_processes_know_the_whole(
    generator: torch.Generator, saved: Callable[..., Path], tmp_path: Path
) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator, windows=3)
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    (tmp_path / "process.py").write_text(PROCESS)
    port = str(free_port())
    runs: list[dict[str, Any]] = [  # sums are added before their absolute values are taken; Gram matrices are gathered
        {"metric": "taylor", "candidates": [0, 1, 2, 4]},
        {"metric": "span", "compensation": "lsq"},
        {"metric": "span", "parity": "official"},
    ]
    command = [sys.executable, tmp_path / "process.py", saved(model), tmp_path / "tokens.npy", json.dumps(runs)]
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    expected = [prunecomp.prune(model, 2, tokens, **options, preset="paper") for options in runs]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1], "the same bits for all"
    for line, alone in zip(outputs[0].splitlines(), expected, strict=True):
        removed, scales, scores = json.loads(line)
        assert removed == alone.removed
        np.testing.assert_allclose(scales, alone.scales, rtol=SCALE)
        for ours, theirs in zip(scores, alone.rounds, strict=True):
            np.testing.assert_allclose(ours, list(theirs.scores.values()), rtol=SCALE)
