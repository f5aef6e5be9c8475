"""NVIDIA Model-Optimizer, in whose environment this runs: pruned, saved, restored, quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunecomp
from prunecomp.errors import OptionError
from tests.integrations.common import CALIBRATION, LAYERS, MODEL, OPTIONS, check_equal, exported

pytest.importorskip("modelopt")
import modelopt.torch.opt as mto
import modelopt.torch.prune as mtp
import modelopt.torch.quantization as mtq

import prunecomp.integrations.model_optimizer

__all__ = ["exported"]


def dense() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL)


def pruned(constraints: dict[str, Any], **config: Any) -> tuple[Any, dict[str, Any]]:
    return mtp.prune(dense(), mode="prunecomp", constraints=constraints, dummy_input=None, config=config)


def test_it_prunes_as_the_command_line_saves_and_restores(exported: dict[str, torch.Tensor], tmp_path: Path) -> None:
    from_text = {"calibration": str(CALIBRATION), "tokenizer": AutoTokenizer.from_pretrained(MODEL), **OPTIONS}
    windows = windows_of(from_text)
    model, found = pruned({"num_layers": 16 - LAYERS}, forward_loop=lambda m: [m(row[None]) for row in windows])
    check_equal(model.state_dict(), exported)
    assert len(found["removed"]) == LAYERS
    assert found["record"]["layer_map"] == [layer for layer in range(16) if layer not in found["removed"]]

    mto.save(model, tmp_path / "saved.pt")
    again = mto.restore(dense(), tmp_path / "saved.pt")
    assert again.config.num_hidden_layers == 16 - LAYERS
    with torch.no_grad():
        assert torch.equal(model(windows[:1], labels=windows[:1]).loss, again(windows[:1], labels=windows[:1]).loss)

    quantised = mtq.quantize(again, mtq.INT8_DEFAULT_CFG, lambda m: m(windows[:1]))
    mto.save(quantised, tmp_path / "quantised.pt")
    third = mto.restore(dense(), tmp_path / "quantised.pt")
    with torch.no_grad():
        assert torch.equal(quantised(windows[:1]).logits, third(windows[:1]).logits)
        assert not torch.equal(quantised(windows[:1]).logits, model(windows[:1]).logits)


def windows_of(options: dict[str, Any]) -> torch.Tensor:
    """The windows that the command line draws from the text, int64 [N, S]."""
    model = dense()
    return prunecomp.prune(model, 1, **options).calibration.tokens


def test_a_share_and_the_bundled_texts() -> None:
    options = {"tokenizer": AutoTokenizer.from_pretrained(MODEL), "metric": "last", **OPTIONS}
    model, found = pruned({"num_layers": "80%"}, options=options)
    assert model.config.num_hidden_layers == 13
    assert sorted(found["removed"]) == sorted(set(range(16)) - set(found["record"]["layer_map"]))


@pytest.mark.parametrize("constraints", [{}, {"params": "60%"}, {"num_layers": 12, "flops": 1e9}])
def test_other_constraints_are_refused(constraints: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="give num_layers alone"):
        pruned(constraints)
