"""Repairs that other methods put where layers were, as their papers have them, written by us to measure against.

All take streams of the dense model, [T, d] in float32, X going into what is removed and Y coming out of it:

- LinearPatch (arXiv 2505.24680): Y is about X H D H^T when the model runs, H orthonormal Hadamard, D the mean over
  windows of the ratio of mean magnitudes in that basis;
- Ghosted Layers (arXiv 2605.15491): Y is about X W when the model runs, W by least squares over the whole d x d;
- ReplaceMe (arXiv 2505.02819): Y is about X - M + M T, M the output of the MLP below; T goes into its down projection.
"""

from __future__ import annotations

import math
from typing import Any

import torch

GHOSTED_RIDGE = 1e-6
"""That of the authors' code, in units of the stream squared: next to nothing."""
EPOCHS, BATCH, RATE = 10, 1024, 1e-4
"""How ReplaceMe's code trains its cosine form, with Adam from the identity."""


class Streams:
    """What a dense model makes of token ids [N, S]: ``inputs[l]`` goes into layer l, and ``inputs[L]`` comes out of the
    last one; ``mlps[l]`` is what layer l's MLP adds. Each [N, S, d] in float32."""

    def __init__(self, model: Any, tokens: torch.Tensor) -> None:
        layers = model.model.layers
        self.inputs: list[Any] = [[] for _ in range(len(layers) + 1)]
        self.mlps: list[Any] = [[] for _ in layers]
        handles = []
        for position, layer in enumerate(layers):
            handles += [
                layer.register_forward_pre_hook(lambda _, args, p=position: self.inputs[p].append(args[0].float())),
                layer.mlp.register_forward_hook(lambda _, args, out, p=position: self.mlps[p].append(out.float())),
            ]
        handles.append(model.model.norm.register_forward_pre_hook(lambda _, args: self.inputs[-1].append(args[0])))
        with torch.no_grad():
            for window in tokens:
                model.model(input_ids=window[None], use_cache=False)
        for handle in handles:
            handle.remove()
        self.inputs = [torch.cat(parts).float() for parts in self.inputs]
        self.mlps = [torch.cat(parts) for parts in self.mlps]


def short_gpt(streams: Streams, count: int) -> list[int]:
    """ShortGPT (arXiv 2403.03853): the layers that turn the stream least, each by itself."""
    turned = [1 - similarity(x, y) for x, y in zip(streams.inputs, streams.inputs[1:], strict=False)]
    return sorted(sorted(range(len(turned)), key=lambda layer: turned[layer])[:count])


def streamline(streams: Streams, count: int) -> list[int]:
    """LLM-Streamline (arXiv 2403.19135): the block of layers that turns the stream least; never the first or last."""
    starts = range(1, len(streams.inputs) - 1 - count)
    start = max(starts, key=lambda s: similarity(streams.inputs[s], streams.inputs[s + count]))
    return list(range(start, start + count))


def replace_me_block(streams: Streams, count: int) -> list[int]:
    """ReplaceMe: the block over which the last token of a window turns least."""

    def angle(start: int) -> float:
        x, y = (streams.inputs[at][:, -1] for at in (start, start + count))
        return float(torch.cosine_similarity(x, y, dim=-1).clamp(-1, 1).acos().mean())

    start = min(range(1, len(streams.inputs) - count), key=angle)
    return list(range(start, start + count))


def similarity(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(torch.cosine_similarity(x, y, dim=-1).mean())


def gaps(removed: list[int]) -> list[tuple[int, int]]:
    """Contiguous runs of layers, each as its first and the one behind its last."""
    found: list[tuple[int, int]] = []
    for layer in sorted(removed):
        if found and found[-1][1] == layer:
            found[-1] = (found[-1][0], layer + 1)
        else:
            found.append((layer, layer + 1))
    return found


def linear_patch(streams: Streams, start: int, end: int) -> torch.Tensor:
    """The map [d, d] from the right that takes the place of the layers from ``start`` to before ``end``."""
    x, y = streams.inputs[start], streams.inputs[end]
    rotation = hadamard(x.shape[-1])
    before, after = ((each @ rotation).abs().mean(dim=1) for each in (x, y))
    scaled: torch.Tensor = rotation * (after / before).mean(dim=0)
    return scaled @ rotation.T


def ghosted(streams: Streams, start: int, end: int) -> torch.Tensor:
    """The same, by least squares."""
    x, y = (streams.inputs[at].flatten(0, 1).double() for at in (start, end))
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    fitted: torch.Tensor = torch.linalg.solve(x.T @ x + GHOSTED_RIDGE * eye, x.T @ (y - x))
    return (eye + fitted).float()


def replace_me(streams: Streams, start: int, end: int, cosine: bool) -> torch.Tensor:
    """The map [d, d] from the right of what the MLP below ``start`` adds."""
    x, y = (streams.inputs[at].flatten(0, 1) for at in (start, end))
    added = streams.mlps[start - 1].flatten(0, 1)
    wanted = y - x + added
    if not cosine:
        added = added.double()
        fitted: torch.Tensor = torch.linalg.solve(added.T @ added, added.T @ wanted.double())
        return fitted.float()
    learnt = torch.eye(x.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([learnt], lr=RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(added), generator=generator).split(BATCH):
            optimizer.zero_grad()
            (1 - torch.cosine_similarity(added[rows] @ learnt, wanted[rows], dim=-1).mean()).backward()
            optimizer.step()
    found: torch.Tensor = learnt.detach()
    return found


def hadamard(size: int) -> torch.Tensor:
    """An orthonormal Hadamard matrix [size, size]: of Sylvester's doubling and Paley's two constructions.

    Raises ``ValueError`` for a size that these do not reach.
    """
    odd, doublings = size, 0
    while odd % 2 == 0:
        odd, doublings = odd // 2, doublings + 1
    for left in range(doublings + 1):  # as many doublings as leave a core that is known
        core = paley(odd << left)
        if core is not None:
            for _ in range(doublings - left):
                core = torch.cat([torch.cat([core, core], dim=1), torch.cat([core, -core], dim=1)])
            return core / math.sqrt(size)
    raise ValueError(f"no Hadamard matrix of size {size} is built here")


def paley(size: int) -> torch.Tensor | None:
    """A Hadamard matrix of this size from the squares of a prime field, or None: size - 1 a prime of 4k + 3 (Paley I),
    or size / 2 - 1 a prime of 4k + 1 (Paley II); and size 1."""
    if size == 1:
        return torch.ones(1, 1)
    if prime(size - 1) and (size - 1) % 4 == 3:
        core = jacobsthal(size - 1)
        bordered = torch.zeros(size, size)
        bordered[0, 1:], bordered[1:, 0], bordered[1:, 1:] = 1, -1, core
        return bordered + torch.eye(size)
    if size % 2 == 0 and prime(size // 2 - 1) and (size // 2 - 1) % 4 == 1:
        symmetric = torch.ones(size // 2, size // 2)
        symmetric[0, 0], symmetric[1:, 1:] = 0, jacobsthal(size // 2 - 1)
        plus, minus = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
        return torch.kron(symmetric, plus) + torch.kron(torch.eye(size // 2), minus)
    return None


def prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def jacobsthal(modulus: int) -> torch.Tensor:
    """Whether the difference of column and row is a square of the field: 1 or -1, and 0 where they are equal."""
    squares = {number * number % modulus for number in range(1, modulus)}
    sign = torch.tensor([0.0, *(1.0 if number in squares else -1.0 for number in range(1, modulus))])
    numbers = torch.arange(modulus)
    return sign[(numbers[None, :] - numbers[:, None]) % modulus]
