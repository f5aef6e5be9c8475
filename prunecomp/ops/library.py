"""The operations as ``torch.library`` defines them: schema, fake implementation, and the call into the chosen back end.

``backend`` is part of each schema ("" for the default), so that a traced graph keeps the caller's choice.
"""

from __future__ import annotations

import torch

from prunecomp.ops.backends import implementation
from prunecomp.ops.reference import fresh_gram, fresh_stats


@torch.library.custom_op("prunecomp::layer_stats", mutates_args=())
def layer_stats(
    x: torch.Tensor, y: torch.Tensor, lengths: torch.Tensor | None, with_input: bool, backend: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return implementation("layer_stats", x, backend)(x, y, lengths, with_input)  # type: ignore[no-any-return]


@layer_stats.register_fake
def _(
    x: torch.Tensor, y: torch.Tensor, lengths: torch.Tensor | None, with_input: bool, backend: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return fresh_stats(x, with_input)


@torch.library.custom_op("prunecomp::layer_gram", mutates_args=())
def layer_gram(
    states: list[torch.Tensor], lengths: torch.Tensor | None, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return implementation("layer_gram", states[0], backend)(states, lengths)  # type: ignore[no-any-return]


@layer_gram.register_fake
def _(states: list[torch.Tensor], lengths: torch.Tensor | None, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    return fresh_gram(states)


@torch.library.custom_op("prunecomp::weight_norms", mutates_args=())
def weight_norms(w: torch.Tensor, backend: str) -> torch.Tensor:
    return implementation("weight_norms", w, backend)(w)  # type: ignore[no-any-return]


@weight_norms.register_fake
def _(w: torch.Tensor, backend: str) -> torch.Tensor:
    return w.new_empty(2, dtype=torch.float64)


@torch.library.custom_op("prunecomp::weight_salience", mutates_args=("acc",))
def weight_salience(w: torch.Tensor, g: torch.Tensor, acc: torch.Tensor, backend: str) -> torch.Tensor:
    return implementation("weight_salience", w, backend)(w, g, acc)  # type: ignore[no-any-return]


@weight_salience.register_fake
def _(w: torch.Tensor, g: torch.Tensor, acc: torch.Tensor, backend: str) -> torch.Tensor:
    return acc.new_empty((), dtype=torch.float64)


@torch.library.custom_op("prunecomp::linear_gram", mutates_args=("ata", "atb"))
def linear_gram(a: torch.Tensor, b: torch.Tensor, ata: torch.Tensor, atb: torch.Tensor, backend: str) -> None:
    implementation("linear_gram", a, backend)(a, b, ata, atb)


@linear_gram.register_fake
def _(a: torch.Tensor, b: torch.Tensor, ata: torch.Tensor, atb: torch.Tensor, backend: str) -> None:
    return None
