"""What is being pruned, as the rest of the package sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prunecomp.data.tokens import Tokenize
from prunecomp.engine.placement import ModelShape, model_shape
from prunecomp.model.adapter import Family
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families
from prunecomp.model.quantised.stored import Dequantised
from prunecomp.model.source.licence import Licence
from prunecomp.model.source.reference import whole_by_transformers
from prunecomp.model.weights import SafetensorsCheckpoint, TensorSource


class ModelSource:
    """Config, tokenizer, weights to run and weights to export of one model."""

    name: str
    config: Any

    @property
    def num_layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def family(self) -> Family:
        return families.find(self.config.model_type)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        raise NotImplementedError

    resident: bool
    """Whether the caller holds all weights where they run already."""

    def shape(self) -> ModelShape:
        """What placement has to know; no weights are loaded."""
        return model_shape(self.described.model, self.family, self.dtype)

    described: Decoder
    """The decoder, possibly without its weights."""

    def load(self, group_size: int | None = None) -> Decoder:
        """The decoder to run; loaded on the first call, to be streamed by ``group_size`` layers if given."""
        raise NotImplementedError

    def check_unchanged(self) -> None:
        """Raise :class:`OptionError` where weights are no longer those that were measured."""

    def release(self) -> None:
        """Let go of the weights that :meth:`load` brought, where they can be had again: it brings them back."""

    def as_loaded(self, device: torch.device | None = None) -> Decoder:
        """The model as its users load it, to judge by: by transformers, or as :meth:`load` does where that cannot; on
        the ``device`` where it has ample room."""
        return self.load()

    def load_export(self, folder: Path, device: torch.device | None = None) -> Any | None:
        """An export of this model as its users load it; None where transformers cannot, or memory does not hold it."""
        if self.part_of is not None or self.quantised is not None:
            return None
        attention = str(self.load().config._attn_implementation)
        return whole_by_transformers(folder, SafetensorsCheckpoint(folder), attention, device)

    def tensors(self) -> TensorSource:
        """The original weights, for export, as they are stored."""
        raise NotImplementedError

    def stored(self, name: str) -> list[str]:
        """Those of :meth:`plain_tensors` that hold what the model has as ``name``."""
        return [name]

    @property
    def layers(self) -> str:
        """The path of the layers in the names of :meth:`tensors`."""
        return self.family.layers

    def plain_tensors(self) -> TensorSource:
        """:meth:`tensors` with quantised weights dequantised, under their plain names."""
        return self.tensors()

    @property
    def quantised(self) -> str | None:
        """The method by which weights are quantised, if they are."""
        plain = self.plain_tensors()
        return plain.method if isinstance(plain, Dequantised) else None

    part_of: str | None = None
    """The ``model_type`` of the multimodal model whose text decoder this is, if it is one."""

    def check_written(self, *, folded: bool) -> None:
        """Raise for what is known before any work to keep this model, ``folded`` or as it is, from being written."""

    @property
    def vocab_size(self) -> int:
        """Token ids that the model has rows for."""
        return self.described.vocab_size

    @property
    def position_rows(self) -> int | None:
        """Positions that the model has a table for, if it has one."""
        return self.described.position_rows

    def raw_config(self) -> dict[str, Any]:
        """The configuration as a checkpoint stores it."""
        raise NotImplementedError

    def write_companions(self, folder: Path) -> None:
        """Write tokenizer and generation config beside the weights."""
        raise NotImplementedError

    @property
    def base(self) -> str | None:
        """The folder or hub id the weights can be had from again, if there is one."""
        raise NotImplementedError

    def generation(self) -> Any | None:
        """What is stated, beside the config, of how the model generates. Raises :class:`CheckpointError` for what
        cannot be used."""
        return None

    def licence(self) -> Licence:
        """What the base model says of its licence."""
        return Licence()

    @property
    def tokenize(self) -> Tokenize | None:
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A digest that tells this model from others."""
        raise NotImplementedError
