"""The polynomial for acos against float64."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from prunecomp.kernels.angle import angle


@triton.jit
def _angles(cosine, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, angle(tl.load(cosine + at)))


def test_angles_are_right_to_a_few_roundings() -> None:
    count = 1 << 16
    near_one = 1 - torch.logspace(-8, 0, count // 4)
    cosine = torch.cat([torch.linspace(-1.00001, 1.00001, count // 2), near_one, -near_one])
    out = torch.empty(count)
    _angles[(1,)](cosine, out, COUNT=count)
    truth = torch.acos(cosine.double().clamp(-1, 1)) / math.pi
    error = (out.double() - truth).abs()
    assert float((error / truth.clamp_min(1e-30)).max()) < 4 * torch.finfo(torch.float32).eps
    ends = torch.tensor([-1.0, 0.0, 0.5, 1.0])
    out = torch.empty(4)
    _angles[(1,)](ends, out, COUNT=4)
    torch.testing.assert_close(out, torch.tensor([1.0, 0.5, 1 / 3, 0.0]))
