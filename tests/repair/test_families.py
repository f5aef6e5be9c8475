"""The refit in every family: the least-squares fit where the writer adds to the stream, nearer to it behind a norm,
and a refusal by name where there are routed experts alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import prunecomp
from prunecomp.errors import OptionError
from prunecomp.model.decoder import Decoder
from prunecomp.repair.writers import mlp_writer
from tests.families.configs import FAMILIES
from tests.families.test_families import build, token_errors
from tests.models import draw_tokens
from tests.oracles.refit import ridge_solution
from tests.tolerances import error

CUT = 3
ALONE = {"mixtral", "gpt-oss"}
"""Families whose layers end in routed experts alone."""
NORMED = {"gemma2", "gemma3", "olmo2", "olmo3", "glm4"}


@pytest.mark.parametrize("case", sorted(set(FAMILIES) - ALONE - NORMED))
def test_the_refit_is_the_least_squares_fit(case: str, generator: torch.Generator, tmp_path: Path) -> None:
    """Against float64 from states that transformers itself gives; then the export against the repaired model."""
    model = build(case).double()
    model.config._experts_implementation = "eager"  # grouped matrix products know no float64
    decoder = Decoder(model)
    tokens = draw_tokens(model, generator, windows=6, seqlen=14)
    result = prunecomp.prune(
        model, 1, tokens, metric="given", given=[CUT], compensation="none", repair="refit", ridge=1
    )
    assert result.repair is not None
    writer = mlp_writer(decoder, CUT - 1)
    overlay = result.stack.overlays.get(CUT - 1)
    if writer is None:  # this layer has routed experts alone, others do not
        assert overlay is None
        assert result.repair.gaps[0].fitted == []
    else:
        assert overlay is not None
        module = writer.module(decoder.layers[CUT - 1])
        seen: list[torch.Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
        with torch.no_grad():
            states = [
                model(input_ids=t[None], output_hidden_states=True, use_cache=False).hidden_states for t in tokens
            ]
        handle.remove()
        y, z = (torch.cat([s[layer][0] for s in states]) for layer in (CUT, CUT + 1))
        w = 1 / z.square().mean(dim=-1, keepdim=True).sqrt()
        a = float((w**2 * y * z).sum() / (w**2 * y * y).sum())
        h = w * torch.cat(seen)
        change = ridge_solution(h, w * (z / a - y), float(h.square().sum(dim=0).mean())) / writer.multiplier
        plain = module.get_parameter("weight").detach()
        expected = plain + (change if case == "gpt2" else change.T)
        assert set(overlay.tensors) == {f"{writer.path}.weight"}
        # Kept in float32, and norms and rotary embeddings inside transformers compute in it.
        assert error(overlay.tensors[f"{writer.path}.weight"], expected) < 64 * torch.finfo(torch.float32).eps
    with decoder.evaluating():
        logits = decoder.logits(decoder.run(result.stack, tokens))
        loaded = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "out"), dtype=torch.float64).eval()
        loaded.config._experts_implementation = "eager"
        assert float(token_errors(loaded(input_ids=tokens).logits, logits).max()) < 1e-5


@pytest.mark.parametrize("case", sorted(NORMED))
def test_a_refit_behind_a_norm_comes_nearer_to_what_is_gone(
    case: str, generator: torch.Generator, tmp_path: Path
) -> None:
    model = build(case).double()
    tokens = draw_tokens(model, generator, windows=12, seqlen=14)
    result = prunecomp.prune(
        model, 1, tokens, metric="given", given=[CUT], compensation="none", repair="refit", ridge=1
    )
    assert result.repair is not None
    gap = result.repair.gaps[0]
    assert gap.scale == 1.0
    assert len(gap.fitted) == 2
    assert gap.error_after < gap.error_before
    decoder = Decoder(model)
    with decoder.evaluating():
        below, dense = result.stack.below(CUT), type(result.stack).dense(8).below(CUT + 1)
        y, z = decoder.run(below, tokens), decoder.run(dense, tokens)
        size = z.square().mean(dim=-1, keepdim=True).sqrt()
        found = float(((z - y) / size).square().sum() / (z / size).square().sum()) ** 0.5
        assert gap.error_after == pytest.approx(found, rel=1e-4)
        logits = decoder.logits(decoder.run(result.stack, tokens))
        loaded = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "out"), dtype=torch.float64).eval()
        assert float(token_errors(loaded(input_ids=tokens).logits, logits).max()) < 1e-5


@pytest.mark.parametrize("case", sorted(ALONE))
def test_a_family_of_routed_experts_alone_refuses_it(case: str, generator: torch.Generator) -> None:
    model = build(case)
    tokens = draw_tokens(model, generator)
    with pytest.raises(OptionError, match=r"--repair refit: .* has no matrix to fit"):
        prunecomp.prune(model, 1, tokens, metric="given", given=[CUT], repair="refit")
    judged = prunecomp.prune(model, 1, tokens, metric="given", given=[CUT], compensation="scale", repair="auto").repair
    assert judged is not None
    assert set(judged.losses) == {"loop", "scalar", "none"}
