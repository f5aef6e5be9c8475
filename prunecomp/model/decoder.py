"""A Hugging Face decoder taken apart into embedding, layers and head, without changing it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from prunecomp.errors import CheckpointError
from prunecomp.model.adapter import Family, names_parameter
from prunecomp.model.families import families
from prunecomp.model.rotary import RotaryEmbeddings
from prunecomp.model.stack import LayerStack, Overlay
from prunecomp.model.streaming import LayerWeights, ResidentWeights
from prunecomp.model.weights import TensorSource


class StandIn(nn.Module):
    """In the place of a decoder layer: ``does(stream, unnamed, named)`` what it is called with, and is for everything
    else the layer."""

    def __init__(self, layer: nn.Module, does: Callable[..., Any]) -> None:
        super().__init__()
        object.__setattr__(self, "replaced", layer)  # not a submodule: its weights may not be there yet
        self.does = does

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["replaced"], name)

    def forward(self, hidden_states: torch.Tensor, *unnamed: Any, **named: Any) -> Any:
        return self.does(hidden_states, unnamed, named)


class PackedTokens(Protocol):
    """Tokens with positions of their own, as :class:`prunecomp.data.windows.Batch` has them."""

    @property
    def tokens(self) -> torch.Tensor: ...

    @property
    def positions(self) -> torch.Tensor | None: ...

    def tokens_on(self, device: torch.device) -> torch.Tensor: ...


Tokens = torch.Tensor | PackedTokens

LayerArguments = list[dict[str, Any]]
"""For each original layer, the keyword arguments its model passes: masks, positions, rotary embeddings."""


class Decoder:
    """The parts of a causal language model that pruning calls, over weights that it only reads.

    Parameters
    ----------
    model : a transformers ``...ForCausalLM`` of a known family; it is used as it is, on the device it is on.
    weights : who brings the layers' weights; by default they are all in place.
    source : the checkpoint that the model was read from, whose tensors may be of a finer dtype.
    """

    def __init__(self, model: Any, weights: LayerWeights | None = None, source: TensorSource | None = None) -> None:
        self.model = model
        self._source = source
        self.weights: LayerWeights = ResidentWeights() if weights is None else weights
        self.config = model.config
        self.family: Family = families.find(self.config.model_type)
        self.backbone = model.get_submodule(self.family.backbone)
        self.layers: list[nn.Module] = list(model.get_submodule(self.family.layers).children())
        self._refuse_unknown_parts()
        self.final_norm = model.get_submodule(self.family.final_norm)
        self.head: Any = model.get_submodule(self.family.head)
        self.embedding: Any = model.get_submodule(self.family.embeddings[0])
        self.rotary = RotaryEmbeddings(self.backbone)
        self._arguments: dict[tuple[int, int], LayerArguments] = {}
        self._call: Callable[..., torch.Tensor] = call_layer
        if len(self.layers) != self.config.num_hidden_layers:
            raise CheckpointError(
                f"the model has {len(self.layers)} layers, its config says {self.config.num_hidden_layers}"
            )

    def check_plain(self, purpose: str) -> None:
        """Raise :class:`CheckpointError` if the model holds quantised weights: they run, and cannot be looked at."""
        quantised = getattr(self.model, "hf_quantizer", None) is not None
        if quantised or not all(p.is_floating_point() and p.dtype.itemsize > 1 for p in self.model.parameters()):
            raise CheckpointError(
                f"this model holds quantised weights, and {purpose} needs plain ones. Give the folder of its "
                "checkpoint instead, or load it with dequantize=True, or prune the model it was made from"
            )

    def _refuse_unknown_parts(self) -> None:
        owner, _, leaf = self.family.final_norm.rpartition(".")
        if getattr(self.model.get_submodule(owner), leaf, None) is None:
            raise CheckpointError(
                f"this {self.family.name} model has no final norm: nothing would take the scale out of the last stream"
            )
        if getattr(self.config, "num_kv_shared_layers", None):
            raise CheckpointError(
                f"the last {self.config.num_kv_shared_layers} layers of this model take keys and values from earlier "
                "ones (num_kv_shared_layers): no layer of it runs, or goes, by itself"
            )
        for path, reason in self.family.refused_parts:
            owner, _, leaf = path.rpartition(".")
            if getattr(self.model.get_submodule(owner), leaf, None) is not None:
                raise CheckpointError(f"this {self.family.name} model has {path}: {reason}")

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Token ids that can be embedded and predicted: the weights have rows for so many, whatever the config says."""
        return int(min(self.embedding.weight.shape[0], self.head.weight.shape[0]))

    @property
    def position_rows(self) -> int | None:
        """Positions that the model has learned one by one, which no window can exceed; None where they are computed."""
        if len(self.family.embeddings) == 1:
            return None
        table: Any = self.model.get_submodule(self.family.embeddings[1])
        return int(table.weight.shape[0]) - int(getattr(table, "offset", 0))  # OPT leaves the first rows unused

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

    @property
    def packs(self) -> bool:
        """Whether attention takes sequences end to end in one row: flash-attn does; SDPA would need a mask to."""
        return str(self.config._attn_implementation).startswith("flash_attention")

    def enter(self, batch: Tokens) -> tuple[torch.Tensor, LayerArguments]:
        """Embed tokens [B, S]: the stream entering layer 0, [B, S, d], and each layer's arguments.

        The model's own forward runs with its layers replaced by what notes their arguments, so that embedding
        multipliers, masks and positions are what the model makes them. Unless sequences are packed, arguments depend on
        the shape alone and are made once a shape; rotary embeddings that look at lengths see those of this batch alone.
        """
        tokens, positions = (batch, None) if isinstance(batch, torch.Tensor) else (batch.tokens, batch.positions)
        there = batch.to(self.device) if isinstance(batch, torch.Tensor) else batch.tokens_on(self.device)
        entered: list[torch.Tensor] = []
        arguments: LayerArguments = [{} for _ in self.layers]

        def noting(number: int, layer: nn.Module) -> StandIn:
            names = list(inspect.signature(layer.forward).parameters)[1:]

            def note(stream: torch.Tensor, unnamed: tuple[Any, ...], named: dict[str, Any]) -> Any:
                entered.append(stream)
                arguments[number] = {**dict(zip(names, unnamed, strict=False)), **named}
                return (stream,) if self.family.returns_tuple else stream

            return StandIn(layer, note)

        options = {} if positions is None else {"position_ids": positions.to(self.device)}
        self.rotary.release()
        with self.layers_as(noting(number, layer) for number, layer in enumerate(self.layers)):
            try:
                self.backbone(input_ids=there, use_cache=False, **options)
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise CheckpointError(
                    f"transformers does not run this {self.config.model_type} model ({type(error).__name__}: {error}): "
                    "look at its config"
                ) from error
        if positions is None:
            arguments = self._arguments.setdefault((tokens.shape[0], tokens.shape[1]), arguments)
        return entered[0], arguments

    @contextmanager
    def layers_as(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Within, ``modules`` stand where the model has its layers."""
        owner, _, leaf = self.family.layers.rpartition(".")
        place = self.model.get_submodule(owner)
        layers = getattr(place, leaf)
        setattr(place, leaf, nn.ModuleList(modules))
        try:
            yield
        finally:
            setattr(place, leaf, layers)

    def arguments(self, batch: Tokens) -> LayerArguments:
        """Each layer's arguments for tokens [B, S]; the embedding runs only for a shape not met before."""
        tokens, positions = (batch, None) if isinstance(batch, torch.Tensor) else (batch.tokens, batch.positions)
        known = self._arguments.get((tokens.shape[0], tokens.shape[1])) if positions is None else None
        return self.enter(batch)[1] if known is None else known

    def call(
        self, layer: int, stream: torch.Tensor, arguments: LayerArguments, overlay: Overlay | None = None
    ) -> torch.Tensor:
        """Run one original layer on a stream [B, S, d]; the stream that leaves it has the same shape and dtype.

        The weights of an ``overlay`` stand in for the layer's own for the length of the call.
        """
        if overlay is None:
            return self._call(self.layers[layer], stream, arguments[layer])
        with standing_in(self.layers[layer], overlay.on(stream.device, self.dtype)):
            return self._call(self.layers[layer], stream, arguments[layer])

    def stored(self, name: str) -> torch.Tensor:
        """A parameter as its checkpoint holds it, on the CPU; not to be written to."""
        if self._source is not None:
            return self._source.read(name)
        self.check_plain("this compensation")
        parameter: torch.Tensor = self.model.get_parameter(name)
        return parameter.detach().cpu()

    @contextmanager
    def watching(self, module: nn.Module, see: Callable[[torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
        """Have ``see(input, output)`` called whenever ``module``, a linear map inside a layer, runs.

        Layers run uncompiled for as long: a graph would have to be made anew for the hook.
        """
        call, self._call = self._call, call_layer
        handle = module.register_forward_hook(lambda _, inputs, output: see(inputs[0], output))
        try:
            yield
        finally:
            handle.remove()
            self._call = call

    def compile(self) -> None:
        """Run layers through ``torch.compile``: one graph serves all that are alike, since weights are its inputs."""
        self._call = torch.compile(call_layer)

    def topped(self, stack: LayerStack) -> Decoder:
        """The same with the final norm and the head of ``stack``."""
        overlay = stack.overlays.get(stack.num_layers)
        if overlay is None:
            return self
        tensors, view = overlay.on(self.device, self.dtype), copy.copy(self)
        for name in ("final_norm", "head"):
            module = copy.copy(getattr(self, name))
            weight = nn.Parameter(tensors[f"{getattr(self.family, name)}.weight"], requires_grad=False)
            module._parameters = {**module._parameters, "weight": weight}
            setattr(view, name, module)
        return view

    def logits(self, stream: torch.Tensor) -> torch.Tensor:
        """Final norm, head and what the family does behind it: [.., d] to [.., vocabulary], in the model's dtype."""
        logits: torch.Tensor = self.head(self.final_norm(stream))
        multiplier, divisor, softcap = (
            getattr(self.config, name) if name else None
            for name in (self.family.logit_multiplier, self.family.logit_divisor, self.family.logit_softcap)
        )
        if multiplier is not None:
            logits = logits * multiplier
        if divisor is not None:
            logits = logits / divisor
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    def run(self, stack: LayerStack, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B, S] through the surviving layers and seams: the stream before the final norm, [B, S, d]."""
        stream, arguments = self.enter(tokens)
        for (layer,), seam in zip(self.weights.walk([(layer,) for layer in stack.alive]), stack.seams, strict=True):
            stream = self.call(layer, apply_seam(stream, seam), arguments, stack.overlays.get(layer))
        return stream

    def writer_tensors(self, layer: int) -> list[str]:
        """Names of the parameters with which a layer writes to the stream, weights and biases."""
        return self._named(layer, self.family.writers)

    def raw_reader_tensors(self, layer: int) -> list[str]:
        """Names of the weights with which a layer reads the stream past its norms; their biases see no scale."""
        return [name for name in self._named(layer, self.family.raw_readers) if not name.endswith("bias")]

    def _named(self, layer: int, paths: tuple[str, ...]) -> list[str]:
        names = [name for name, _ in self.layers[layer].named_parameters()]
        found = [name for path in paths for name in names if names_parameter((path,), name)]
        return [f"{self.family.layers}.{layer}.{name}" for name in found]


@contextmanager
def standing_in(layer: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """``layer`` with some of its parameters, by name, replaced by tensors; its own come back afterwards."""
    places = []
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = layer.get_submodule(owner)
        places.append((module, leaf, module._parameters[leaf]))
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    try:
        yield
    finally:
        for module, leaf, parameter in places:
            module._parameters[leaf] = parameter


def call_layer(layer: Callable[..., Any], stream: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
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
