"""NVIDIA Model-Optimizer, in whose environment this runs: pruned, saved, restored, quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunecomp.errors import OptionError
from tests.integrations.common import LAYERS, MODEL, OPTIONS, UNREPAIRED, cli_export, example

pytest.importorskip("modelopt")
import modelopt.torch.opt as mto
import modelopt.torch.prune as mtp
import modelopt.torch.quantization as mtq


def dense() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL)


def pruned(constraints: dict[str, Any], **config: Any) -> tuple[Any, dict[str, Any]]:
    return mtp.prune(dense(), mode="prunecomp", constraints=constraints, dummy_input=None, config=config)


def test_the_example_prunes_as_the_command_line_saves_and_restores(
    row: Callable[..., None], check_equal: Callable[..., None], checkout: Path
) -> None:
    space: dict[str, Any] = {}
    exec(example("NVIDIA Model-Optimizer", "python"), space)
    model, found, again, windows = (space[name] for name in ("model", "found", "restored", "windows"))
    np.save("windows.npy", windows.numpy())
    meant = cli_export(checkout / "out", checkout / "windows.npy")
    control = cli_export(checkout / "control", checkout / "windows.npy", **UNREPAIRED)
    check_equal("the page's example", model.state_dict(), meant, control)
    assert len(found["removed"]) == LAYERS
    assert found["record"]["layer_map"] == [layer for layer in range(16) if layer not in found["removed"]]
    assert again.config.num_hidden_layers == 16 - LAYERS

    def loss(of: Any) -> float:
        return float(of(windows[:1], labels=windows[:1]).loss)

    def apart(one: Any, other: Any) -> float:
        return float((one(windows[:1]).logits - other(windows[:1]).logits).abs().max())

    with torch.no_grad():
        row(
            "mto.save, mto.restore", "loss, difference", abs(loss(model) - loss(again)), 0.0,
            abs(loss(model) - loss(dense())), values=f"{loss(model):.4f} and {loss(again):.4f}",
        )  # fmt: skip
        quantised = mtq.quantize(again, mtq.INT8_DEFAULT_CFG, lambda m: m(windows[:1]))
        mto.save(quantised, "quantised.pt")
        third = mto.restore(dense(), "quantised.pt")
        row(
            "mtq.quantize to INT8, saved and restored", "logits, largest difference", apart(quantised, third), 0.0,
            apart(quantised, model),
        )  # fmt: skip


def test_a_share_and_the_bundled_texts() -> None:
    options = {"tokenizer": AutoTokenizer.from_pretrained(MODEL), "metric": "last", **OPTIONS}
    model, found = pruned({"num_layers": "80%"}, options=options)
    assert model.config.num_hidden_layers == 13
    assert sorted(found["removed"]) == sorted(set(range(16)) - set(found["record"]["layer_map"]))


@pytest.mark.parametrize("constraints", [{}, {"params": "60%"}, {"num_layers": 12, "flops": 1e9}])
def test_other_constraints_are_refused(constraints: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="give num_layers alone"):
        pruned(constraints)
