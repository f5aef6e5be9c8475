"""A Hugging Face decoder taken apart into embedding, layers and head, without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prunecomp.errors import CheckpointError
from prunecomp.model.adapter import Family
from prunecomp.model.families import families
from prunecomp.model.stack import LayerStack


class _Recorder(nn.Module):
    """Stands in for a decoder layer: notes the keyword arguments it is given and passes the stream through."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "replaced", layer)  # not a submodule: it must not appear in the backbone
        self.arguments: dict[str, Any] = {}
        self.stream: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["replaced"], name)

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        self.stream, self.arguments = hidden_states, arguments
        return hidden_states


LayerArguments = list[dict[str, Any]]
"""For each original layer, the keyword arguments its model passes: masks, positions, rotary embeddings."""


class Decoder:
    """The parts of a causal language model that pruning calls, over weights that it only reads.

    Parameters
    ----------
    model : a transformers ``...ForCausalLM`` of a known family; it is used as it is, on the device it is on.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config
        self.family: Family = families.find(self.config.model_type)
        self.backbone = model.get_submodule(self.family.backbone)
        self.layers: list[nn.Module] = list(model.get_submodule(self.family.layers).children())
        self.final_norm = model.get_submodule(self.family.final_norm)
        self.head: Any = model.get_submodule(self.family.head)
        self.embedding: Any = model.get_submodule(self.family.embeddings[0])
        self._arguments: dict[tuple[int, int], LayerArguments] = {}
        if len(self.layers) != self.config.num_hidden_layers:
            raise CheckpointError(
                f"the model has {len(self.layers)} layers, its config says {self.config.num_hidden_layers}"
            )

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.embedding.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.embedding.weight.dtype
        return dtype

    @property
    def tied(self) -> bool:
        """Whether head and embedding are one tensor."""
        return self.head.weight is self.embedding.weight

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No gradients, no dropout; the mode the caller left the model in comes back afterwards."""
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, training in modes.items():
                module.training = training

    def enter(self, tokens: torch.Tensor) -> tuple[torch.Tensor, LayerArguments]:
        """Embed ``tokens`` [B, S] (int64): the stream entering layer 0, [B, S, d], and each layer's arguments.

        The model's own forward runs with its layers replaced by recorders, so that embedding multipliers, masks and
        positions are what the model makes them. Arguments depend on the shape alone and are made once a shape.
        """
        recorders = nn.ModuleList(_Recorder(layer) for layer in self.layers)
        name = self.family.layers.rpartition(".")
        owner = self.model.get_submodule(name[0])
        original = getattr(owner, name[2])
        setattr(owner, name[2], recorders)
        try:
            self.backbone(input_ids=tokens.to(self.device), use_cache=False)
        finally:
            setattr(owner, name[2], original)
        first: Any = recorders[0]
        shape = (tokens.shape[0], tokens.shape[1])
        if shape not in self._arguments:
            self._arguments[shape] = [recorder.arguments for recorder in recorders]  # type: ignore[misc]
        return first.stream, self._arguments[shape]

    def call(self, layer: int, stream: torch.Tensor, arguments: LayerArguments) -> torch.Tensor:
        """Run one original layer on a stream [B, S, d]; the stream that leaves it has the same shape and dtype."""
        return call_layer(self.layers[layer], stream, arguments[layer])

    def logits(self, stream: torch.Tensor) -> torch.Tensor:
        """Final norm and head: [.., d] to [.., vocabulary], in the model's dtype."""
        logits: torch.Tensor = self.head(self.final_norm(stream))
        return logits

    def run(self, stack: LayerStack, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B, S] through the surviving layers and seams: the stream before the final norm, [B, S, d]."""
        stream, arguments = self.enter(tokens)
        for layer, seam in zip(stack.alive, stack.seams, strict=True):
            stream = self.call(layer, apply_seam(stream, seam), arguments)
        return stream

    def writer_tensors(self, layer: int) -> list[str]:
        """Names of the parameters with which a layer writes to the stream, weights and biases."""
        return [
            f"{self.family.layers}.{layer}.{writer}.{name}"
            for writer in self.family.writers
            for name, _ in self.layers[layer].get_submodule(writer).named_parameters(recurse=False)
        ]


def call_layer(layer: nn.Module, stream: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
    """One decoder layer. transformers 5 returns a tensor, other versions and remote code a tuple that opens with it."""
    output = layer(stream, **arguments)
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    if hidden.shape != stream.shape:
        raise CheckpointError(
            f"a {type(layer).__name__} turned a stream of {tuple(stream.shape)} into {tuple(hidden.shape)}"
        )
    return hidden


def apply_seam(stream: torch.Tensor, seam: float) -> torch.Tensor:
    """The stream times its seam, rounded once to its dtype; the very same tensor where the seam is 1."""
    return stream if seam == 1.0 else stream * seam
