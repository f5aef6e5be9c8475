"""The statistics from their formulas, token by token in float64; nothing of the package."""

from __future__ import annotations

import math

import numpy as np
import torch


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    norms = math.sqrt(x @ x) * math.sqrt(y @ y)
    return 0.5 if norms == 0 else float(x @ y) / norms


def layer_stats(x: torch.Tensor, y: torch.Tensor, lengths: torch.Tensor | None) -> dict[str, np.ndarray]:
    a, b = x.double().numpy(), y.double().numpy()
    n, s, d = a.shape
    out = {
        name: np.zeros(n)
        for name in ("cosine", "angular", "dot", "input_square", "square", "input_norm", "norm", "norm_ratio",
                     "zero_rows", "zero_input_rows")
    }  # fmt: skip
    out["magnitude"], out["input_magnitude"] = np.zeros((n, d)), np.zeros((n, d))
    for i in range(n):
        for t in range(s if lengths is None else min(max(int(lengths[i]), 0), s)):
            u, v = a[i, t], b[i, t]
            u_norm, v_norm = math.sqrt(u @ u), math.sqrt(v @ v)
            out["cosine"][i] += cosine(u, v)
            out["angular"][i] += math.acos(min(1.0, max(-1.0, cosine(u, v)))) / math.pi
            out["dot"][i] += u @ v
            out["input_square"][i] += u @ u
            out["square"][i] += v @ v
            out["input_norm"][i] += u_norm
            out["norm"][i] += v_norm
            out["norm_ratio"][i] += v_norm / u_norm if u_norm else 0.0
            out["zero_rows"][i] += u_norm * v_norm == 0
            out["zero_input_rows"][i] += u_norm == 0
            out["magnitude"][i] += np.abs(v)
            out["input_magnitude"][i] += np.abs(u)
    return out


def layer_gram(states: list[torch.Tensor], lengths: torch.Tensor | None) -> dict[str, np.ndarray]:
    m, n = len(states), states[0].shape[0]
    pairs = {(i, j): layer_stats(states[i], states[j], lengths) for i in range(m) for j in range(m)}
    out = {name: np.zeros((n, m, m)) for name in ("cosine", "angular", "dot", "norm_ratio")}
    out["zero_rows"] = np.zeros((n, m))
    for (i, j), stats in pairs.items():
        for name in ("cosine", "angular", "dot", "norm_ratio"):
            out[name][:, i, j] = stats[name]
        out["zero_rows"][:, i] = stats["zero_input_rows"]
    return out
