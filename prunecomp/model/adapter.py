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

    Layers of one model may differ (dense and expert ones, say): a path that a layer lacks says nothing about it, and
    ``*`` in a path stands for any one name, as in ``mlp.experts.*.down_proj``.
    """

    name: str
    model_types: tuple[str, ...]
    backbone: str = "model"
    layers: str = "model.layers"
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    """What makes the stream that enters the first layer: tokens first, then learned positions."""
    final_norm: str = "model.norm"
    head: str = "lm_head"
    writers: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")
    """Modules (projections, or the norms behind them) or single parameters, as fused experts have them."""
    mlp_writers: tuple[str, ...] = ("mlp.down_proj",)
    """Linear maps that end an MLP: the first of them that a layer has is the one a repair fits anew. Beside experts it
    is that of the shared ones; a layer of experts alone has none."""
    mlp_norm: str | None = None
    """The norm between that map and the stream, where there is one."""
    residual_multiplier: str | None = None
    """The config field of what each sublayer's output is multiplied by on its way to the stream."""
    readers: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    read: tuple[tuple[str, ...], ...] = (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj"),
        ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj"),
    )
    """Linear maps that alone read through each of the ``readers``, in their order; a model whose layers have matrices
    that are neither these nor writers takes no map of its stream."""
    raw_readers: tuple[str, ...] = ()
    """Maps that read the stream itself and feed a nonlinearity: they take the inverse of the stream's scale. A layer's
    other maps of the stream may do without, where a norm that follows takes the scale out again."""
    norm: str = "RMSNorm"
    gain_offset: float = 0.0
    """The norms multiply by ``gain_offset + w``."""
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    logit_softcap: str | None = None
    """Config fields of what happens to the logits behind the head."""
    returns_tuple: bool = False
    """Whether the model indexes what its layers return."""
    layer_count: str = "num_hidden_layers"
    """The name that the config file has for the number of layers."""
    layer_lists: tuple[str, ...] = ("layer_types",)
    """Config fields that hold one entry a layer and are cut with the layers."""
    layer_indices: tuple[str, ...] = ()
    """Config fields that list layers by index, and are renumbered."""
    layer_thresholds: tuple[str, ...] = ()
    """Config fields that hold a layer index, and move down by the layers removed below it."""
    layer_periods: tuple[str, ...] = ()
    """Config fields that give the kinds of layers as a period; one of the lists says the same and outlives them."""
    sparse_period: tuple[str, str] | None = None
    """A period p, and the index list that overrules it: layers not at p-1, 2p-1, ... join the list, and p becomes 1."""
    extra_layers: tuple[str, ...] = ()
    """Config fields that count layers behind the last (multi-token prediction), which do not outlive a cut: 0."""
    stored_as: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Parameters that files hold under other names, or in several tensors: a pattern of the model's name, ``*`` for a
    layer's number, and those of the files, in which one more ``*`` numbers the experts."""
    refused_parts: tuple[tuple[str, str], ...] = ()
    """Modules that no fold knows, each with the reason why a model that has it is refused."""

    @property
    def layer_fields(self) -> tuple[str, ...]:
        """Every config field that follows the layers, their number first."""
        return (
            self.layer_count,
            *self.layer_lists,
            *self.layer_indices,
            *self.layer_thresholds,
            *(self.sparse_period or ())[:1],
            *self.extra_layers,
        )


def names_parameter(paths: Iterable[str], parameter: str) -> bool:
    """Whether one of some ``paths`` of modules or parameters is that of a layer's ``parameter``, or of its module."""
    owner = parameter.rpartition(".")[0]
    return any(_matches(path, parameter) or _matches(path, owner) for path in paths)


def _matches(pattern: str, path: str) -> bool:
    wanted, parts = pattern.split("."), path.split(".")
    return len(wanted) == len(parts) and all(w in ("*", p) for w, p in zip(wanted, parts, strict=True))


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
