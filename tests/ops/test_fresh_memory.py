"""What the tests of kernels rest on: memory that nobody has written is not zero by luck."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_fresh_floats_are_nan(dtype: torch.dtype) -> None:
    held = torch.zeros(3, dtype=dtype)
    for fresh in (
        torch.empty(3, dtype=dtype),
        torch.empty_like(held),
        held.new_empty(3),
        torch.empty_strided((3,), (1,)),
    ):
        assert fresh.isnan().all()


def test_fresh_bytes_are_nan_as_floats_and_fresh_counts_are_no_counts() -> None:
    assert torch.empty(8, dtype=torch.uint8).view(torch.float32).isnan().all()
    for dtype in (torch.int32, torch.int64):
        assert (torch.empty(3, dtype=dtype) == torch.iinfo(dtype).max).all()
