"""A comparison gives what separate runs give, and runs nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Qwen3Config

import prunecomp
from prunecomp.compare import Arm, Comparison, grid
from prunecomp.compare import plan as plans
from prunecomp.compare.arms import PRESETS, arms_of, named_texts
from prunecomp.engine.placement import Placement
from prunecomp.engine.states import StateStore
from prunecomp.errors import JournalError, NumericalError, OptionError
from prunecomp.model.stack import LayerStack
from prunecomp.options import CompareOptions
from prunecomp.pruning.inputs import MIXTURE
from tests.engine.test_streaming import needed
from tests.models import build, draw_tokens

COUNTS = [1, 2, 4]
SCALARS = grid(["bi", "magnitude"], ["none", "scale"], [False, True])
BLOCKS = grid(["span", "angular"], ["none", "lsq"], [True])
OTHERS = [
    Arm("taylor", "scale"),
    Arm("taylor", "none", one_shot=True),
    Arm("ppl", "none"),
    Arm("ppl", "scale"),
    Arm("bi", "lsq"),
    Arm("bi", "lsq", one_shot=True),
    Arm("bi", "search"),
]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(11)
    return build("llama", num_hidden_layers=12)


@pytest.fixture
def calibration(model: Any) -> torch.Tensor:
    return draw_tokens(model, torch.Generator().manual_seed(12), windows=8)


@pytest.fixture
def texts(model: Any) -> dict[str, torch.Tensor]:
    """Two: fewer windows than the calibration set, and more and shorter ones."""
    generator = torch.Generator().manual_seed(13)
    return {"one": draw_tokens(model, generator, windows=3), "two": draw_tokens(model, generator, 10, seqlen=16)}


def test_losses_of_windows_are_those_of_transformers(model: Any, calibration: torch.Tensor) -> None:
    """With windows of two lengths, on the model as it is and without its last layer."""
    tokens = draw_tokens(model, torch.Generator().manual_seed(14), windows=3)
    padded = tokens.clone()
    padded[1, 20:] = -1
    result = prunecomp.compare(
        model, [1], calibration, arms=[Arm("last", "none")], eval={"text": padded}, candidates=[11]
    )
    rows = [tokens[0], tokens[1, :20], tokens[2]]

    def losses() -> list[float]:
        return [float(model(row[None], labels=row[None]).loss) for row in rows]

    with torch.no_grad():
        dense = losses()
        del model.model.layers[11]
        pruned = losses()
    # Float32 losses near 5 of sums over some thirty logarithms: 1e-5 is forty units in the last place.
    assert result.dense_losses["text"] == pytest.approx(dense, abs=1e-5)
    assert result.measurements[0].losses["text"] == pytest.approx(pruned, abs=1e-5)
    predicted = np.array([len(row) - 1 for row in rows])
    assert result.dense["text"] == pytest.approx(np.exp(np.average(result.dense_losses["text"], weights=predicted)))


def counting(model: Any) -> list[int]:
    """Grows by the number of windows whenever a layer is called."""
    calls: list[int] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[0]))
    return calls


def compared(model: Any, calibration: Any, texts: Any, arms: Sequence[Arm], **options: Any) -> Comparison:
    return prunecomp.compare(model, COUNTS, calibration, eval=texts, arms=arms, **options)


def equals_separate_runs(result: Comparison, model: Any, calibration: Any, texts: Any, **options: Any) -> None:
    for arm in result.arms:
        for count in result.layers:
            ours = result.measurement(arm, count)
            assert ours is not None
            for name, text in texts.items():
                theirs = prunecomp.prune(
                    model, count, calibration, eval=text, metric=arm.metric, compensation=arm.compensation,
                    one_shot=arm.one_shot, parity=arm.parity, **options, preset="paper")  # fmt: skip
                assert ours.removed == theirs.removed, arm
                assert ours.scales == theirs.scales, arm
                assert theirs.perplexity == {"dense": result.dense[name], "pruned": ours.perplexity[name]}, arm
            if arm in SCALARS:  # others read states, of which more are kept here than in a last round
                assert ours.layer_forwards == theirs.layer_forwards, arm


@pytest.mark.parametrize("arms", [SCALARS, BLOCKS, OTHERS], ids=["scalars", "blocks", "others"])
def test_a_comparison_gives_what_separate_runs_give_to_the_bit(
    model: Any, calibration: torch.Tensor, texts: dict[str, torch.Tensor], arms: list[Arm]
) -> None:
    calls = counting(model)
    result = compared(model, calibration, texts, arms)
    assert sum(calls) == result.window_forwards
    assert result.window_forwards < result.window_forwards_separately
    assert result.arms == arms
    equals_separate_runs(result, model, calibration, texts)


def test_the_published_code_is_compared_as_it_is_run_alone(model: Any, calibration: torch.Tensor) -> None:
    arms = grid(["bi", "span", "magnitude"], ["scale"], [False], "official")
    equals_separate_runs(
        compared(model, calibration, {"one": calibration}, arms), model, calibration, {"one": calibration}
    )


def test_the_layers_run_are_those_that_the_tree_needs(
    model: Any, calibration: torch.Tensor, texts: dict[str, torch.Tensor]
) -> None:
    """Counted once more from what was removed: a model is scored from its lowest cut since it was last scored, if an
    iterative arm goes on from there, and measured likewise."""
    arms = grid(["bi", "angular"], ["none", "scale"], [False, True])
    calls = counting(model)
    result = compared(model, calibration, texts, arms)
    scored, measured = tree(result)
    expected = scored * len(calibration) + measured * sum(len(text) for text in texts.values())
    assert result.window_forwards == expected
    assert sum(calls) == expected


def tree(result: Comparison) -> tuple[int, int]:
    """Layer-forwards over the calibration set, and over a text, that the models of a comparison need."""
    dense = LayerStack.dense(result.num_layers)
    scored, measured = ({(dense.alive, dense.seams): result.num_layers} for _ in range(2))
    orders: dict[Any, list[int]] = {}
    for arm in result.arms:
        one = result.measurement(arm, COUNTS[-1])
        assert one is not None
        stack = dense
        since_scored, since_measured = [], []
        for depth, (layer, scale) in enumerate(zip(one.removed, one.scales, strict=True), start=1):
            for since in (since_scored, since_measured):
                since.append(stack.position(layer))
            stack = stack.remove(layer, scale)
            key = (stack.alive, stack.seams)
            assert orders.setdefault(key, one.removed[:depth]) == one.removed[:depth], "two ways to one model"
            if not arm.one_shot and depth < COUNTS[-1]:
                scored[key] = len(stack.alive) - min(since_scored)
                since_scored = []
            if depth in COUNTS:  # what leaves the top layer is not kept
                measured[key] = len(stack.alive) - min(*since_measured, len(stack.alive) - 1)
                since_measured = []
    return sum(scored.values()), sum(measured.values())


def test_arms_that_part_and_meet_again_are_measured_once(model: Any, calibration: torch.Tensor) -> None:
    """Without a scale the same layers make the same model, in whatever order they go."""
    result = prunecomp.compare(
        model, [1, 3], calibration, eval={"same": calibration}, arms=[Arm("given", "none"), Arm("last", "none")],
        candidates=[8, 9, 10, 11], given=[9, 10, 11],
    )  # fmt: skip
    one, other = (result.measurement(arm, 3) for arm in result.arms)
    assert one is not None
    assert other is not None
    assert (one.removed, other.removed) == ([9, 10, 11], [11, 10, 9])
    assert one.perplexity == other.perplexity
    # Scored: all, what lies above 9 and 10; then what 11 and 10 leave, nothing. Measured: all, without 9, without 11,
    # once without the three.
    assert result.window_forwards == len(calibration) * ((12 + 2 + 1) + (12 + 2 + 1 + 1))


@pytest.mark.parametrize("boundaries", [0, 3, 20, 60])
def test_any_memory_gives_the_same_and_is_not_exceeded(
    model: Any, calibration: torch.Tensor, texts: dict[str, torch.Tensor], boundaries: int,
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base = saved(model)
    plain = compared(base, calibration, texts, SCALARS)
    held, rooms = watch_states(monkeypatch)
    limited = compared(base, calibration, texts, SCALARS, device_memory=needed(model, calibration, boundaries))
    assert choices(limited) == choices(plain)
    assert limited.window_forwards >= plain.window_forwards
    if boundaries == 60:
        assert limited.window_forwards == plain.window_forwards
    (placement,) = rooms
    room = placement.kept_boundaries + (placement.group_size is not None)  # one between two groups
    assert max(held, default=0) <= room * calibration.numel() * model.config.hidden_size * 4


def watch_states(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[Placement]]:
    """The bytes of states in memory, whenever a boundary is opened; and the room that there was for them."""
    live: WeakSet[Any] = WeakSet()
    held: list[int] = []
    rooms: list[Placement] = []
    opened, place = StateStore._open, plans.Plan.place

    def watched(store: StateStore, tier: Any, **how: Any) -> Any:
        boundary = opened(store, tier, **how)
        live.add(boundary)
        held.append(sum(one._buffer.nbytes for one in live))
        return boundary

    def placed(plan: plans.Plan, *limits: Any) -> Placement:
        rooms.append(place(plan, *limits))
        return rooms[-1]

    monkeypatch.setattr(StateStore, "_open", watched)
    monkeypatch.setattr(plans.Plan, "place", placed)
    return held, rooms


def choices(result: Comparison) -> Any:
    """All but time, and what had to be run again."""
    return result.dense, [
        (m.arm, m.layers, m.removed, m.scales, m.perplexity, m.repair and replace(m.repair, seconds=0.0))
        for m in result.measurements
    ]


@pytest.mark.parametrize("boundaries", [12, 40])
def test_metrics_that_keep_states_of_their_own_share_little_memory_too(
    model: Any, calibration: torch.Tensor, texts: dict[str, torch.Tensor], boundaries: int, saved: Callable[..., Path]
) -> None:
    base = saved(model)
    arms = [*OTHERS, Arm("span", "scale", one_shot=True)]
    plain = compared(base, calibration, texts, arms)
    boundary = calibration.numel() * model.config.hidden_size * 4
    room = 3_000_000 + boundaries * boundary
    assert choices(compared(base, calibration, texts, arms, device_memory=room)) == choices(plain)


class Stop(Exception):
    """Not one of the package's own."""


def interrupted(at: int, *arguments: Any, **options: Any) -> Comparison:
    """What is there when a comparison is cut off at its ``at``-th results, by way of JSON."""
    seen: list[Comparison] = []

    def note(result: Comparison) -> None:
        seen.append(result)
        if len(seen) == at:
            raise Stop

    with pytest.raises(Stop):
        prunecomp.compare(*arguments, on_measured=note, **options)
    return Comparison.from_record(json.loads(json.dumps(seen[-1].record())))


def test_an_interrupted_comparison_goes_on_with_what_is_complete(
    model: Any, calibration: torch.Tensor, texts: dict[str, torch.Tensor]
) -> None:
    options: dict[str, Any] = {"eval": texts, "arms": SCALARS}
    whole = prunecomp.compare(model, COUNTS, calibration, **options)
    earlier = interrupted(6, model, COUNTS, calibration, **options)
    complete = [arm for arm in SCALARS if earlier.complete(arm, COUNTS)]
    assert 0 < len(complete) < len(SCALARS)
    calls = counting(model)
    resumed = prunecomp.compare(model, COUNTS, calibration, earlier=earlier, **options)
    assert choices(resumed) == choices(whole)
    assert earlier.window_forwards + sum(calls) == resumed.window_forwards
    assert sum(calls) < whole.window_forwards
    assert (whole.sittings, resumed.sittings) == (1, 2)
    assert resumed.saving is None
    calls.clear()
    again = prunecomp.compare(model, COUNTS[:2], calibration, earlier=resumed, **options)
    assert not calls, "nothing is left to run"
    assert [(m.arm, m.layers) for m in again.measurements] == [(arm, n) for arm in SCALARS for n in COUNTS[:2]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"seed": 1}, "options.seed"), ({"eval": {"one": np.arange(96).reshape(4, 24)}}, "texts"),
     ({"keep": [1]}, "options.keep")],
)  # fmt: skip
def test_another_comparison_is_not_gone_on_with(
    model: Any, calibration: torch.Tensor, texts: dict[str, torch.Tensor], changed: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {"eval": texts, "arms": SCALARS[:2]}
    earlier = interrupted(1, model, [1], calibration, **options)
    with pytest.raises(JournalError, match=message):
        prunecomp.compare(model, [1], calibration, earlier=earlier, **{**options, **changed})


def test_without_a_calibration_it_is_the_bundled_mixture_as_for_prune(reference_model: Path) -> None:
    options: dict[str, Any] = {"samples": 2, "seqlen": 32, "eval": {"one": torch.arange(64).view(2, 32)}}
    none, given = (prunecomp.compare(reference_model, [1], text, **options) for text in (None, MIXTURE[:2]))
    assert none.calibration == given.calibration
    assert none.measurements[0].perplexity == given.measurements[0].perplexity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["bi", "magic"]}, "--metric magic"),
        ({"compensations": ["glue"]}, "--compensation glue"),
        ({"layers": [12]}, r"bi, iterative: --layers 12: only 12"),
        ({"layers": [6], "metrics": ["bi", "magnitude"]}, r"magnitude, iterative: --layers 6: only 6"),
        ({"layers": None}, "--layers: say after how many"),
        ({"eval": None}, "--eval: give at least one"),
        ({"preset": "thesis"}, "--preset thesis: choose paper-table5, paper"),
        ({"arms": [Arm("bi", "none"), Arm("bi", "none", parity="official")]}, "compare them separately"),
        ({"metrics": ["given"]}, "given, iterative: --given"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(
    model: Any, calibration: torch.Tensor, options: dict[str, Any], message: str
) -> None:
    calls = counting(model)
    arguments = {"layers": [1], "calibration": calibration, "eval": {"one": calibration}, **options}
    with pytest.raises(OptionError, match=message):
        prunecomp.compare(model, **arguments)
    assert not calls


def test_an_error_names_the_arm(model: Any, calibration: torch.Tensor) -> None:
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    with pytest.raises(NumericalError, match=r"^bi \+ scale, one-shot: layer 0: no scale"):
        compared(model, calibration, {"one": calibration}, [Arm("bi", "scale", one_shot=True)])


def test_presets_give_defaults_and_what_is_said_wins() -> None:
    table5, paper = PRESETS["paper-table5"], PRESETS["paper"]
    ways = [("none", True), ("scale", True), ("none", False), ("scale", False)]
    assert arms_of(CompareOptions(), table5) == [Arm("bi", c, o) for c, o in ways]
    assert arms_of(CompareOptions(metrics=["angular"], one_shot=[True]), table5) == [
        Arm("angular", c, True) for c in ("none", "scale")
    ]
    arms = arms_of(CompareOptions(), paper)
    assert {arm.parity for arm in arms} == {"official"}
    assert [(arm.compensation, arm.one_shot) for arm in arms if arm.metric == "ppl"] == [
        ("none", True),
        ("scale", False),
    ]
    assert all(arm.one_shot for arm in arms if arm.metric == "span")


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (LlamaConfig(num_hidden_layers=32, hidden_size=4096, vocab_size=128256), 5),  # LLaMA-3-8B
        (LlamaConfig(num_hidden_layers=32, hidden_size=4096, vocab_size=32000), 7),  # LLaMA-2-7B
        (LlamaConfig(num_hidden_layers=40, hidden_size=5120, vocab_size=32000), 8),  # LLaMA-2-13B
        (Qwen3Config(num_hidden_layers=36, hidden_size=4096, vocab_size=151936), 5),  # Qwen3-8B
        (LlamaConfig(num_hidden_layers=32, hidden_size=4096, vocab_size=32001), 5),
        (Qwen3Config(num_hidden_layers=40, hidden_size=5120, vocab_size=151936), 6),
        (LlamaConfig(num_hidden_layers=28), 4),
        (LlamaConfig(num_hidden_layers=16), 3),
        (LlamaConfig(num_hidden_layers=2), 1),
    ],
)
def test_a_preset_removes_what_the_paper_does_of_its_models_and_a_share_of_others(config: Any, layers: int) -> None:
    assert PRESETS["paper"].layers(config) == PRESETS["paper-table5"].layers(config) == [layers]


def test_a_preset_without_other_options_compares_its_arms_on_its_share(model: Any, calibration: torch.Tensor) -> None:
    result = prunecomp.compare(model, preset="paper-table5", calibration=calibration, eval={"one": calibration})
    assert result.layers == [2]
    assert len(result.measurements) == 4


def test_texts_go_by_names(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a")
    assert named_texts(str(path)) == {"a": str(path)}
    assert named_texts([str(path), f"b={path}", "wikitext2-test", f"c4-validation={path}"]) == {
        "a": str(path), "b": str(path), "wikitext2-test": "wikitext2-test", "c4-validation": f"c4-validation={path}",
    }  # fmt: skip
    assert named_texts({"ptb-test": path, "x": [1, 2]}) == {"ptb-test": f"ptb-test={path}", "x": [1, 2]}
    for wrong, message in (([str(path), str(path)], "there is a text a already"), (["a="], "write NAME=PATH")):
        with pytest.raises(OptionError, match=message):
            named_texts(wrong)
