"""The whole engine on a GPU: the same bits wherever states and weights live, and the CPU's results within rounding."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import prunecomp
from prunecomp.data.windows import Windows
from prunecomp.engine import placement
from prunecomp.engine.latency import measure_latency
from prunecomp.engine.states import Tier
from prunecomp.model.decoder import Decoder
from prunecomp.pruning.pruner import Pruner
from tests.engine.test_ragged import records
from tests.engine.test_streaming import needed, shape_of
from tests.models import build, draw_tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GPU = torch.device("cuda")
ALL = range(6)

# A float32 layer on a CPU and on a GPU adds in other orders: each of six layers errs by some 1e-6 of its stream, scores
# and scales are means over hundreds of tokens. A TF32 product, which must not happen unasked, errs by 3e-4.
ROUNDING = 1e-4


@pytest.fixture
def base(saved: Callable[..., Path]) -> Path:
    torch.manual_seed(1)
    return saved(build("llama", hidden_size=256, intermediate_size=1536, max_position_embeddings=512))


@pytest.fixture
def tokens(generator: torch.Generator) -> torch.Tensor:
    """More than two micro-batches, the last one smaller."""
    return torch.randint(0, 101, (45, 200), generator=generator)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two layers at a time is to be too little for all of them, which larger batches would outweigh."""
    monkeypatch.setitem(placement.TOKENS_A_MICRO_BATCH, "cuda", 4096)


def limits(base: Path, tokens: torch.Tensor, dtype: torch.dtype, tier: Tier, folder: Path) -> dict[str, Any]:
    """Memory for two layers at a time, and one boundary beside the one that is carried, both in ``tier``."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    shape = shape_of(model)
    boundary = tokens.numel() * shape.hidden_size * dtype.itemsize
    device = needed(model, tokens, 1 if tier is Tier.device else -1, device=GPU)
    host = 2 * shape.layer_nbytes + (2 * boundary if tier is Tier.host else 0)
    return {"device_memory": device, "host_memory": host, "disk": folder if tier is Tier.disk else None}


def outcome(result: Any) -> tuple[Any, ...]:
    return result.removed, result.scales, [r.scores for r in result.rounds], result.perplexity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.usefixtures("small_batches")
def test_a_streamed_run_equals_a_resident_one_bit_for_bit(
    tier: Tier, dtype: torch.dtype, base: Path, tokens: torch.Tensor, tmp_path: Path
) -> None:
    options: Any = {"dtype": str(dtype)[6:], "eval": tokens, "preset": "paper", "device": "cuda"}
    states = tmp_path / "states"
    states.mkdir()
    plain = prunecomp.prune(base, 3, tokens, **options)
    limited = prunecomp.prune(base, 3, tokens, **options, **limits(base, tokens, dtype, tier, states))
    assert plain.placement.group_size is None
    assert limited.placement.group_size == 1
    assert limited.placement.carry is tier
    assert outcome(limited) == outcome(plain)
    ours, theirs = plain.save(tmp_path / "plain"), limited.save(tmp_path / "limited")
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert not list(states.iterdir())


def test_no_more_memory_is_taken_than_was_planned(base: Path, tokens: torch.Tensor) -> None:
    options: Any = {"dtype": "bfloat16", "preset": "paper", "device": "cuda"}
    prunecomp.prune(base, 1, tokens, **options)  # handles, workspaces, kernels
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = prunecomp.prune(base, 3, tokens, **options)
    most = torch.cuda.max_memory_allocated() - before
    workspace = 64 * 2**20  # of matrix products; torch allocates it
    assert most <= result.placement.peak_nbytes[Tier.device] + workspace


@pytest.mark.parametrize("metric", ["bi", "span", "angular", "ppl", "taylor", "magnitude"])
def test_a_gpu_chooses_what_a_cpu_does(metric: str, base: Path, tokens: torch.Tensor) -> None:
    tokens = tokens[:, :90]
    options: Any = {"dtype": "float32", "metric": metric, "preset": "paper", "eval": tokens[:3], "candidates": ALL}
    if metric == "span":
        options["span"] = 2
    there = prunecomp.prune(base, 2, tokens, device="cpu", **options)
    here = prunecomp.prune(base, 2, tokens, device="cuda", **options)
    assert here.removed == there.removed
    assert here.scales == pytest.approx(there.scales, rel=ROUNDING)
    for ours, theirs in zip(here.rounds, there.rounds, strict=True):
        assert ours.scores == pytest.approx(theirs.scores, rel=ROUNDING, abs=ROUNDING)
    for name, perplexity in there.perplexity.items():
        assert here.perplexity[name] == pytest.approx(perplexity, rel=ROUNDING)


@pytest.mark.parametrize("options", [
    {"repair": "refit"}, {"repair": "joint"}, {"repair": "map"}, {"repair": "auto"}, {"compensation": "search"},
    {"compensation": "lsq"}, {"compensation": "norm"}, {"compensation": "none", "repair": "none"},
], ids=str)  # fmt: skip
def test_what_repairs_on_a_cpu_repairs_on_a_gpu(
    options: dict[str, Any], base: Path, tokens: torch.Tensor, tmp_path: Path
) -> None:
    tokens = tokens[:, :90]
    options = {"dtype": "float32", "eval": tokens[:3], **options}
    there = prunecomp.prune(base, 2, tokens, device="cpu", **options)
    here = prunecomp.prune(base, 2, tokens, device="cuda", **options)
    again = prunecomp.prune(base, 2, tokens, device="cuda", **options)
    assert outcome(again) == outcome(here)
    assert here.removed == there.removed
    # A fit solves systems whose condition magnifies rounding; what it does to the loss it must not change.
    assert here.perplexity["pruned"] == pytest.approx(there.perplexity["pruned"], rel=30 * ROUNDING)
    exported = AutoModelForCausalLM.from_pretrained(here.save(tmp_path / "here"), dtype=torch.float32)
    with torch.no_grad():
        loss = sum(exported(row[None], labels=row[None]).loss for row in tokens[:3]) / 3
    assert float(loss.exp()) == pytest.approx(here.perplexity["pruned"], rel=ROUNDING)


def test_ragged_windows_give_what_each_gives_alone(base: Path, generator: torch.Generator) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(GPU)
    windows = Windows(draw_tokens(model, generator, 7, 150), "test", torch.tensor([150, 140, 99, 64, 31, 5, 2]))
    rows = zip(windows.tokens, windows.lengths.tolist(), strict=True)
    alone = [records(Pruner(Decoder(model), Windows(row[:n].unsqueeze(0), "one")), 6) for row, n in rows]
    for number, part in enumerate(records(Pruner(Decoder(model), windows), 6)):
        expected = torch.cat([one[number] for one in alone])
        scale = float(expected.abs().double().sum()) / max(expected.numel(), 1)
        torch.testing.assert_close(part, expected, rtol=10 * ROUNDING, atol=ROUNDING * scale)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradients_have_the_same_bits_where_attention_is_split(dtype: str) -> None:
    """Windows so long that kernels cut the keys of a row into parts, which they may add in any order."""
    model = build("llama", hidden_size=512, num_attention_heads=8, max_position_embeddings=4096).to(
        getattr(torch, dtype)
    )
    tokens = torch.randint(0, 101, (4, 4000), generator=torch.Generator().manual_seed(3))
    options: Any = {"device": "cuda", "metric": "taylor", "candidates": ALL, "preset": "paper"}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*non-deterministic")
        first, *others = (prunecomp.prune(model.to(GPU), 1, tokens, **options) for _ in range(4))
    assert all(outcome(other) == outcome(first) for other in others)


@pytest.mark.parametrize("metric", ["bi", "taylor", "ppl"])
def test_two_runs_in_a_process_give_the_same_bits(metric: str, base: Path, tokens: torch.Tensor) -> None:
    options: Any = {"dtype": "bfloat16", "device": "cuda", "metric": metric, "eval": tokens[:9]} | {"candidates": ALL}
    assert outcome(prunecomp.prune(base, 2, tokens, **options)) == outcome(prunecomp.prune(base, 2, tokens, **options))


@pytest.mark.parametrize("backend", ["triton", "cuda", "reference"])
def test_every_back_end_chooses_alike(backend: str, base: Path, tokens: torch.Tensor) -> None:
    options: Any = {"dtype": "float32", "preset": "paper", "device": "cuda"}
    auto = prunecomp.prune(base, 3, tokens, **options)
    one = prunecomp.prune(base, 3, tokens, **options, backend=backend)
    assert one.removed == auto.removed
    assert one.scales == pytest.approx(auto.scales, rel=ROUNDING)


def test_compiled_layers_choose_alike(base: Path, tokens: torch.Tensor) -> None:
    options: Any = {"dtype": "float32", "preset": "paper", "device": "cuda"}
    plain, compiled = (prunecomp.prune(base, 3, tokens, **options, compile=which) for which in ("off", "on"))
    assert compiled.compiled
    assert compiled.removed == plain.removed
    assert compiled.scales == pytest.approx(plain.scales, rel=ROUNDING)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_another_card_gives_the_same_bits(base: Path, tokens: torch.Tensor) -> None:
    first, second = (prunecomp.prune(base, 3, tokens, device=f"cuda:{n}", preset="paper") for n in (0, 1))
    assert outcome(first) == outcome(second)


def test_latency_and_profiles_are_measured(base: Path, tokens: torch.Tensor) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).to(GPU)
    latency = measure_latency(Decoder(model), tokens[:1])
    assert 0 < latency.ratio([0, 1, 2]) < 1


def test_the_command_runs(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("cyclopts")
    reference = Path(__file__).parents[2] / "examples" / "reference_model"
    command = [sys.executable, "-m", "prunecomp", "prune", str(reference), "--layers", "2", "--samples", "16"]
    command += ["--seqlen", "256", "--out", str(tmp_path / "out"), "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()
