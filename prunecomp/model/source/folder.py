"""A checkpoint folder as a model source."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from prunecomp.data.tokens import Tokenize, Tokenizer
from prunecomp.errors import CheckpointError
from prunecomp.io.plain import read_object
from prunecomp.model.checks import check_named, warn_of_surprises
from prunecomp.model.decoder import Decoder
from prunecomp.model.files import GENERATION
from prunecomp.model.loader import (
    build_skeleton,
    choose_attention,
    choose_device,
    choose_dtype,
    load_decoder,
    read_config,
    reason_of,
    text_decoder_of,
)
from prunecomp.model.quantised import dequantised
from prunecomp.model.source.base import ModelSource
from prunecomp.model.source.companions import TOKENIZERS, Companions, find_companions
from prunecomp.model.source.licence import Licence, read_licence
from prunecomp.model.source.reference import check_read_alike, whole_by_transformers
from prunecomp.model.stored import layers_path, stored_names, under_model_names
from prunecomp.model.weights import TensorSource, fingerprint, open_checkpoint


class FolderSource(ModelSource):
    """A checkpoint folder, local or in the hub's cache."""

    resident = False

    def __init__(
        self, folder: Path, name: str, dtype: str, device: str, allow_pickle: bool, attention: str = "auto"
    ) -> None:
        self.folder = folder
        self.name = name
        self.config = read_config(folder)
        self.part_of = text_decoder_of(folder, self.config)
        self._dtype, self._device, self._allow_pickle, self._attention = dtype, device, allow_pickle, attention
        choose_attention(attention, self.config, self.device, self.dtype)
        self._tensors = open_checkpoint(folder, allow_pickle)  # a damaged checkpoint is told before any work
        self._plain = dequantised(self._tensors, self.config)
        self._view = under_model_names(self._plain, self.family)
        skeleton: Any = build_skeleton(self.config, self.dtype, checkpoint=self._view)
        check_named(self._tensors.unnamed, folder)
        if self.part_of is None:  # else the other parts of the model are there too
            warn_of_surprises(skeleton, self._view)
        self.described = Decoder(skeleton)
        self._decoder: Decoder | None = None
        self._group_size: int | None = None

    @property
    def device(self) -> torch.device:
        return choose_device(self._device)

    @property
    def dtype(self) -> torch.dtype:
        return choose_dtype(self._dtype, self.config, self.device)

    def load(self, group_size: int | None = None) -> Decoder:
        if self._decoder is None:
            self._group_size = group_size = group_size or self._group_size
            self._decoder = load_decoder(
                self.folder, dtype=self._dtype, device=self._device, allow_pickle=self._allow_pickle,
                group_size=group_size, attention=self._attention,
            )  # fmt: skip
            if self.part_of is None and self.quantised is None:
                check_read_alike(self._decoder, self.folder, self.config)
        return self._decoder

    def release(self) -> None:
        self._decoder = None

    def as_loaded(self, device: torch.device | None = None) -> Decoder:
        if self.part_of is not None or self.quantised is not None:
            return self.load()
        attention = str(self.load().config._attn_implementation)
        loaded = whole_by_transformers(self.folder, self._tensors, attention, device)
        return self.load() if loaded is None else Decoder(loaded)

    def tensors(self) -> TensorSource:
        return self._tensors

    def plain_tensors(self) -> TensorSource:
        return self._plain

    def stored(self, name: str) -> list[str]:
        return stored_names(self._view, name)

    @property
    def layers(self) -> str:
        return layers_path(self._plain, self.family)

    def check_written(self, *, folded: bool) -> None:
        _ = self._companions

    def raw_config(self) -> dict[str, Any]:
        return read_object(self.folder / "config.json", CheckpointError)

    @cached_property
    def _companions(self) -> Companions:
        return find_companions(self.folder, {path.name for path in self._tensors.files()})

    def write_companions(self, folder: Path) -> None:
        self._companions.write(folder)

    @property
    def base(self) -> str | None:
        return str(self.folder.resolve()) if Path(self.name).exists() else self.name

    def generation(self) -> Any | None:
        path = self.folder / GENERATION
        if not path.is_file():
            return None
        try:
            return GenerationConfig.from_pretrained(self.folder)
        except Exception as error:  # what a value of the wrong kind raises is up to transformers
            raise CheckpointError(f"{path} cannot be used: {reason_of(error)}") from error

    def licence(self) -> Licence:
        return read_licence(self.folder)

    @property
    def tokenize(self) -> Tokenize | None:
        if not any(path.match(pattern) for path in self.folder.iterdir() for pattern in TOKENIZERS):
            return None
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self._read_tokenizer)

    def _read_tokenizer(self) -> Any:
        try:
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        except Exception as error:  # what a damaged file raises is up to the class of the tokenizer
            raise CheckpointError(
                f"{self.folder}: the tokenizer cannot be read: {reason_of(error)}. Token ids in a .npy file need none"
            ) from error

    def fingerprint(self) -> str:
        return fingerprint(self._tensors)
