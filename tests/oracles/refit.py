"""The repair from its formula: float64, dense states by hooks, whole re-runs for each gap, nothing of the package."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from tests.oracles.iterative import boundary_states, drop_layer


def ridge_solution(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
    """argmin |a D - b|^2 + weight |D|^2, by least squares on the augmented rows."""
    k = a.shape[1]
    padded = torch.cat([a, weight**0.5 * torch.eye(k, dtype=a.dtype)])
    return torch.linalg.lstsq(padded, torch.cat([b, b.new_zeros(k, b.shape[1])])).solution


@torch.no_grad()
def given_to(model: Any, module: Any, windows: Sequence[torch.Tensor]) -> torch.Tensor:
    """What a module is given over all windows, [T, k]."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    for tokens in windows:
        model(input_ids=tokens[None], use_cache=False)
    handle.remove()
    return torch.cat(seen)


class ReadInBasis(torch.nn.Module):
    """An RMSNorm of y that takes ``c rms(M^-1 y)`` for its root mean square."""

    def __init__(self, norm: Any, matrix: torch.Tensor, ratio: float) -> None:
        super().__init__()
        self.gain = norm.weight + ("Gemma" in type(norm).__name__)
        self.epsilon = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        self.inverse, self.ratio = torch.linalg.inv(matrix), ratio

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        x = y @ self.inverse.T
        return self.gain * y / (self.ratio * (x.square().mean(dim=-1, keepdim=True) + self.epsilon).sqrt())


@torch.no_grad()
def repair(
    model: Any,
    windows: Sequence[torch.Tensor],
    removed: Sequence[int],
    ridge: float,
    joint: bool = False,
    map_ridge: float | None = None,
) -> tuple[Any, list[float]]:
    """The repaired model, whose seams multiply what enters a layer, and the scalar of each gap from below.

    With ``map_ridge`` the stream goes through a map above each gap but the bottom one, as the model runs, and every
    norm above takes the root mean square in the basis in which the maps would be folded, times a constant.
    """
    basis = torch.eye(model.config.hidden_size, dtype=torch.float64)
    multiplier = getattr(model.config, "residual_multiplier", 1.0)
    dense = [boundary_states(model, tokens) for tokens in windows]
    work = copy.deepcopy(model)
    alive = [layer for layer in range(len(work.model.layers)) if layer not in removed]
    for layer in sorted(removed, reverse=True):
        drop_layer(work, layer)
    scales = []
    for p, (low, high) in enumerate(zip([-1, *alive], [*alive, len(model.model.layers)], strict=True)):
        if high == low + 1:
            continue
        z = torch.cat([states[high] for states in dense])
        w = 1 / z.square().mean(dim=1, keepdim=True).sqrt()

        def below(p: int = p) -> torch.Tensor:
            return torch.cat([boundary_states(work, tokens)[p] for tokens in windows])

        y = below()
        a = float((w**2 * y * z).sum() / (w**2 * y * y).sum())
        a = a if a > 0 else 1.0  # the layers turn the stream around
        scales.append(a)
        if p > 0:
            layer = work.model.layers[p - 1]
            o_proj, down = layer.self_attn.o_proj, layer.mlp.down_proj
            if joint:
                h = w * torch.cat([given_to(work, one, windows) for one in (o_proj, down)], dim=1)
                change = ridge_solution(h, w * (z / a - y), ridge * float(h.square().sum(dim=0).mean()))
                o_proj.weight += change[: o_proj.in_features].T / multiplier
                y = below()
            h = w * given_to(work, down, windows)
            change = ridge_solution(h, w * (z / a - y), ridge * float(h.square().sum(dim=0).mean()))
            down.weight += change.T / multiplier
            if map_ridge is not None:
                y = below()
                h = w * y
                scaled = map_ridge * float(h.square().sum(dim=0).mean())
                put = torch.eye(len(basis), dtype=torch.float64) + ridge_solution(h, w * (z / a - y), scaled).T
                x = y @ torch.linalg.inv(basis).T
                basis = put @ basis
                ratio = (y @ put.T).norm(dim=1) / x.norm(dim=1)
                c = float(ratio.square().sum() / ratio.sum())
                work.model.norm = ReadInBasis(model.model.norm, basis, c)
                for layer, plain in zip(work.model.layers[p:], [model.model.layers[n] for n in alive[p:]], strict=True):
                    for name in ("input_layernorm", "post_attention_layernorm"):
                        setattr(layer, name, ReadInBasis(getattr(plain, name), basis, c))
                place = work.model.layers[p] if p < len(alive) else work.model.norm
                place.register_forward_pre_hook(lambda _, args, put=put: (args[0] @ put.T, *args[1:]))
        if p < len(alive):
            work.model.layers[p].register_forward_pre_hook(lambda _, args, a=a: (args[0] * a, *args[1:]))
    return work, scales
