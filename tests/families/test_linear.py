"""The linear repair in every family whose MLP ends in a matrix onto the stream; the others refuse it by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import prunecomp
from prunecomp.compensation.choice import CHOICES
from prunecomp.compensation.linear import RIDGE
from prunecomp.errors import OptionError
from prunecomp.model.adapter import Family
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families
from tests.families.configs import FAMILIES
from tests.families.test_families import build, token_errors
from tests.models import draw_tokens
from tests.oracles.linear import ridge_solution
from tests.tolerances import error

CUT = 3


def family_of(case: str) -> Family:
    return families.find(AutoConfig.for_model(FAMILIES[case]["model_type"]).model_type)


WITH, WITHOUT = ([case for case in FAMILIES if (family_of(case).mlp_writer is None) is none] for none in (False, True))


@pytest.mark.parametrize("case", WITH)
def test_the_repair_is_the_least_squares_map(case: str, generator: torch.Generator, tmp_path: Path) -> None:
    """Against float64 from states that transformers itself gives; then the export against the repaired model."""
    model = build(case).double()
    tokens = draw_tokens(model, generator, windows=6, seqlen=14)
    writer = model.get_submodule(f"{family_of(case).layers}.{CUT - 1}.{family_of(case).mlp_writer}")
    seen: list[torch.Tensor] = []
    handle = writer.register_forward_hook(lambda _, args, out: seen.append(out))
    with torch.no_grad():
        states = [model(input_ids=t[None], output_hidden_states=True, use_cache=False).hidden_states for t in tokens]
    handle.remove()
    below, above = (torch.cat([s[layer][0] for s in states]) for layer in (CUT, CUT + 1))
    size = above.square().mean(dim=-1, keepdim=True).sqrt()
    written = torch.cat(seen).reshape(below.shape) / size
    change = ridge_solution(written, (above - below) / size, RIDGE * float(written.square().sum(dim=0).mean()))
    result = prunecomp.prune(model, 1, tokens, metric="given", given=[CUT], compensation="linear")
    overlay = result.stack.overlays[CUT - 1]
    assert set(overlay.tensors) == {f"{family_of(case).mlp_writer}.{name}" for name, _ in writer.named_parameters()}
    for name, tensor in overlay.tensors.items():
        plain = writer.get_parameter(name.rpartition(".")[2]).detach()
        # Kept in float32, and norms and rotary embeddings inside transformers compute in it.
        assert error(tensor, plain + change.T @ plain) < 64 * torch.finfo(torch.float32).eps, name
    decoder = Decoder(model)
    with decoder.evaluating():
        expected = decoder.logits(decoder.run(result.stack, tokens))
        loaded = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "out"), dtype=torch.float64).eval()
        assert float(token_errors(loaded(input_ids=tokens).logits, expected).max()) < 1e-5


@pytest.mark.parametrize("case", WITHOUT)
def test_a_family_without_such_a_matrix_refuses_it(case: str, generator: torch.Generator) -> None:
    model = build(case)
    tokens = draw_tokens(model, generator)
    with pytest.raises(OptionError, match=r"--compensation linear: .* has no matrix to fold it into"):
        prunecomp.prune(model, 1, tokens, metric="given", given=[CUT], compensation="linear")
    chosen = prunecomp.prune(model, 1, tokens, metric="given", given=[CUT], compensation="auto").rounds[0]
    assert set(chosen.losses) == set(CHOICES) - {"linear"}
