"""In what a model computes where nobody says so."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from prunecomp.model import loader
from prunecomp.model.loader import choose_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("stated", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_products", [False, True])
def test_sixteen_bits_are_widened_only_where_the_processor_has_no_products_for_them(
    stated: torch.dtype, has_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 holds every value of either, so nothing of the checkpoint is lost; a dtype that is named stays."""
    monkeypatch.setattr(loader, "multiplies", lambda dtype, device: device == GPU or has_products)
    config = LlamaConfig(dtype=stated)
    assert choose_dtype("auto", config, CPU) == (stated if has_products else torch.float32)
    assert choose_dtype("auto", config, GPU) == stated
    assert choose_dtype(str(stated).removeprefix("torch."), config, CPU) == stated


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_dtypes_are_taken_as_they_are(dtype: torch.dtype) -> None:
    assert choose_dtype("auto", LlamaConfig(dtype=dtype), CPU) == dtype
