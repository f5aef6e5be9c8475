"""A model object as a model source."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from prunecomp.data.tokens import Tokenize, Tokenizer
from prunecomp.errors import OptionError, PrunecompWarning
from prunecomp.model.decoder import Decoder
from prunecomp.model.loader import check_as_built, decoder_of
from prunecomp.model.source.base import ModelSource
from prunecomp.model.source.companions import copy_tokenizer
from prunecomp.model.source.licence import Licence, read_licence
from prunecomp.model.weights import ModuleTensors, TensorSource, tensor_digest


class Versions:
    """How often each parameter had been written to, as PyTorch counts it. What is done to its ``data``, as we prune in
    place, is not counted."""

    def __init__(self, parameters: Iterable[torch.Tensor] = ()) -> None:
        self._each = [(one, one._version) for one in parameters if not one.is_inference()]

    @property
    def changed(self) -> bool:
        return any(one._version != version for one, version in self._each)

    def __reduce__(self) -> tuple[type[Versions], tuple[()]]:
        return Versions, ()  # a copy counts anew


class InMemorySource(ModelSource):
    """A model that the caller holds; it is used where it is and as it is."""

    resident = True

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._decoder = self.described = decoder_of(model)
        model = self._decoder.model
        self._tokenizer = tokenizer
        self._tokenize = None if tokenizer is None else Tokenizer(lambda: tokenizer)
        self.config = model.config
        self._came_from = str(getattr(model.config, "_name_or_path", "")) or None
        self.name = self._came_from or type(model).__name__
        self._versions = Versions(model.parameters())

    @property
    def device(self) -> torch.device:
        return self._decoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self._decoder.dtype

    def load(self, group_size: int | None = None) -> Decoder:
        return self._decoder

    def check_unchanged(self) -> None:
        if self._versions.changed:
            raise OptionError(
                "the weights of the model in memory have been changed since it was pruned, trained, say, and the "
                "result is of what they were: save the model itself, by its save_pretrained, or prune it anew"
            )

    def tensors(self) -> TensorSource:
        self._decoder.check_plain("a checkpoint of it")
        return ModuleTensors(self._decoder.model)

    def check_written(self, *, folded: bool) -> None:
        check_as_built(self._decoder)
        if folded:
            self._decoder.check_plain("a fold")

    def raw_config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self.config.to_json_string())
        config["architectures"] = [type(self._decoder.model).__name__]
        config["dtype"] = str(self._decoder.dtype).removeprefix("torch.")
        return config

    def write_companions(self, folder: Path) -> None:
        generation = getattr(self._decoder.model, "generation_config", None)
        for part in (generation, self._tokenizer):
            if part is not None:
                part.save_pretrained(folder)
        if self._tokenizer is None and not copy_tokenizer(self._parent(), folder):
            warnings.warn(
                "the export has no tokenizer: the model in memory knows of no folder that it came from with one; give "
                "tokenizer=, or copy its files there",
                PrunecompWarning,
                stacklevel=2,
            )

    def _parent(self) -> Path:
        """The folder that the model was loaded from, also in the hub's cache; it may not be there."""
        if self._came_from is None or Path(self._came_from).is_dir():
            return Path(self._came_from or os.devnull)
        try:
            cached = try_to_load_from_cache(self._came_from, "config.json")
        except ValueError:  # no name of a repository
            cached = None
        return Path(cached).parent if isinstance(cached, str) else Path(os.devnull)

    @property
    def base(self) -> str | None:
        return self._came_from

    def licence(self) -> Licence:
        folder = Path(self.name)
        return read_licence(folder) if folder.is_dir() else Licence()

    @property
    def tokenize(self) -> Tokenize | None:
        return self._tokenize

    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.raw_config(), sort_keys=True).encode())
        for name, tensor in self._decoder.model.state_dict().items():
            digest.update(f"{name}:{tensor_digest(tensor)}:".encode())
        return digest.hexdigest()
