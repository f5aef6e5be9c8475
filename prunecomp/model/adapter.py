"""What the pruner has to know about a model family, and the table of the families it knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prunecomp.errors import CheckpointError


@dataclass(frozen=True)
class Family:
    """A decoder family, described by module paths inside its ``...ForCausalLM`` class.

    ``writers`` and ``readers`` are relative to one decoder layer: a writer adds to the residual stream (its output is
    linear in its weight and bias), a reader is a norm through which alone the layer sees the stream. A fold is exact
    because every reader ignores the scale of what it reads, and each fold is proved on the layer all the same.
    """

    name: str
    model_types: tuple[str, ...]
    backbone: str = "model"
    layers: str = "model.layers"
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    final_norm: str = "model.norm"
    head: str = "lm_head"
    writers: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")
    mlp_writer: str | None = "mlp.down_proj"
    """The linear map that ends the MLP and adds to the stream as it is, or None where something stands in between."""
    readers: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    layer_lists: tuple[str, ...] = ("layer_types",)
    """Config fields that hold one entry a layer and are cut with the layers."""
    layer_thresholds: tuple[str, ...] = ()
    """Config fields that hold a layer index, and move down by the layers removed below it."""


class FamilyRegistry:
    """Families by the ``model_type`` of their configuration."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._by_type: dict[str, Family] = {}
        for family in families:
            self.register(family)

    def register(self, family: Family) -> None:
        """Add a family, or replace the one known under the same ``model_type``."""
        for model_type in family.model_types:
            self._by_type[model_type] = family

    def known_types(self) -> list[str]:
        return sorted(self._by_type)

    def find(self, model_type: str) -> Family:
        """The family of a ``model_type``; raises :class:`CheckpointError` with the known ones otherwise."""
        if model_type not in self._by_type:
            raise CheckpointError(
                f"model_type {model_type!r} is not a known family; known are {', '.join(self.known_types())}. "
                "Describe it with prunecomp.Family and add it with prunecomp.families.register(...)."
            )
        return self._by_type[model_type]
