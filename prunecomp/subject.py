"""What is being pruned: a folder on disk or a model in memory, behind one face."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from prunecomp.checkpoint.card import Licence, read_licence
from prunecomp.checkpoint.rules import renumber_rules
from prunecomp.checkpoint.scales import check_repair
from prunecomp.checkpoint.writer import copy_companions
from prunecomp.data.sources import Tokenize, Tokenizer
from prunecomp.engine.placement import ModelShape, model_shape
from prunecomp.errors import CheckpointError, FoldError
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families
from prunecomp.model.families.document import needs_care
from prunecomp.model.loader import (
    build_skeleton,
    choose_attention,
    choose_device,
    choose_dtype,
    load_decoder,
    read_config,
    resolve_model,
    text_decoder_of,
)
from prunecomp.model.quantised import Dequantised, dequantised, method_of, quantisation, summary
from prunecomp.model.stored import layers_path, stored_names, under_model_names
from prunecomp.model.weights import ModuleTensors, TensorSource, fingerprint, open_checkpoint


class Subject:
    """Config, tokenizer, weights to run and weights to export of one model."""

    name: str
    config: Any

    @property
    def num_layers(self) -> int:
        return int(self.config.num_hidden_layers)

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
        raise NotImplementedError

    def load(self, group_size: int | None = None) -> Decoder:
        """The decoder to run; loaded on the first call, to be streamed by ``group_size`` layers if given."""
        raise NotImplementedError

    def tensors(self) -> TensorSource:
        """The original weights, for export, as they are stored."""
        raise NotImplementedError

    def stored(self, name: str) -> list[str]:
        """Those of :meth:`plain_tensors` that hold what the model has as ``name``."""
        return [name]

    @property
    def layers(self) -> str:
        """The path of the layers in the names of :meth:`tensors`."""
        return families.find(self.config.model_type).layers

    def plain_tensors(self) -> TensorSource:
        """:meth:`tensors` with quantised weights dequantised, under their plain names."""
        return self.tensors()

    @property
    def quantised(self) -> str | None:
        """The method by which weights are quantised, if they are."""
        plain = self.plain_tensors()
        return plain.method if isinstance(plain, Dequantised) else None

    def renumber_rules(self, stated: Any, renumber: Mapping[int, int]) -> Any:
        """``stated``, the ``quantization_config``, once layers have the numbers of ``renumber``. Raises
        :class:`CheckpointError` for a rule that cannot follow them."""
        modules = {name.rpartition(".")[0] for name in self.tensors().names()}
        return renumber_rules(stated, families.find(self.config.model_type), self.layers, renumber, modules)

    part_of: str | None = None
    """The ``model_type`` of the multimodal model whose text decoder this is, if it is one."""

    def check_fold(self, form: str) -> None:
        """Raise :class:`FoldError` where a fold cannot take this form."""
        if form == "down" and self.part_of is not None:
            raise FoldError(
                f"--fold down scales the embedding, and in {self.part_of} images enter the stream beside it, unscaled: "
                "use --fold up"
            )

    def check_export(self, candidates: Collection[int], fold: str | None, replaces: bool) -> None:
        """Raise for what is known before any work to have no export: of a compensation that is put in by a ``fold`` of
        this form, and possibly ``replaces`` weights, or of any of the ``candidates``."""
        if fold is not None:
            self.check_fold(fold)

    @property
    def vocab_size(self) -> int:
        """Token ids that the model has rows for."""
        return int(self.config.vocab_size)

    @property
    def position_rows(self) -> int | None:
        """Positions that the model has a table for, if it has one."""
        return position_rows(self.config)

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

    def licence(self) -> Licence:
        """What the base model says of its licence."""
        return Licence()

    @property
    def tokenize(self) -> Tokenize | None:
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A digest that tells this model from others."""
        raise NotImplementedError


class FolderSubject(Subject):
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
        choose_attention(attention, self.config, choose_device(device), choose_dtype(dtype, self.config))
        self._tensors = open_checkpoint(folder, allow_pickle)  # a damaged checkpoint is told before any work
        self._plain = dequantised(self._tensors, self.config)
        self._view = under_model_names(self._plain, families.find(self.config.model_type))
        self._decoder: Decoder | None = None
        self._shape: ModelShape | None = None

    @property
    def device(self) -> torch.device:
        return choose_device(self._device)

    @property
    def dtype(self) -> torch.dtype:
        return choose_dtype(self._dtype, self.config)

    def shape(self) -> ModelShape:
        if self._shape is None:
            skeleton: Any = build_skeleton(self.config, self.dtype)
            skeleton.tie_weights()
            self._shape = model_shape(skeleton, families.find(self.config.model_type), self.dtype)
        return self._shape

    def load(self, group_size: int | None = None) -> Decoder:
        if self._decoder is None:
            self._decoder = load_decoder(
                self.folder, dtype=self._dtype, device=self._device, allow_pickle=self._allow_pickle,
                group_size=group_size, attention=self._attention,
            )  # fmt: skip
        return self._decoder

    def tensors(self) -> TensorSource:
        return self._tensors

    def plain_tensors(self) -> TensorSource:
        return self._plain

    def stored(self, name: str) -> list[str]:
        return stored_names(self._view, name)

    @property
    def layers(self) -> str:
        return layers_path(self._plain, families.find(self.config.model_type))

    def check_export(self, candidates: Collection[int], fold: str | None, replaces: bool) -> None:
        super().check_export(candidates, fold, replaces)
        stated = quantisation(self.config)
        if stated is None:
            return
        if fold is not None:
            decoder = Decoder(build_skeleton(self.config, self.dtype))
            check_repair(decoder, self.plain_tensors(), self.stored, replaces)
        lowest = min(candidates)  # every number above it changes
        alive = [layer for layer in range(self.num_layers) if layer != lowest]
        self.renumber_rules(stated, {layer: number for number, layer in enumerate(alive)})

    def raw_config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return config

    def write_companions(self, folder: Path) -> None:
        copy_companions(self.folder, folder)

    @property
    def base(self) -> str | None:
        return str(self.folder.resolve()) if Path(self.name).is_dir() else self.name

    def licence(self) -> Licence:
        return read_licence(self.folder)

    @property
    def tokenize(self) -> Tokenize | None:
        if not any(self.folder.glob("tokenizer*")) and not (self.folder / "vocab.json").is_file():
            return None
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        except (ValueError, OSError, KeyError) as error:
            raise CheckpointError(f"{self.folder}: the tokenizer cannot be read: {error}") from error
        return Tokenizer(tokenizer)

    def fingerprint(self) -> str:
        return fingerprint(self.folder)


class ModelSubject(Subject):
    """A model that the caller holds; it is used where it is and as it is."""

    resident = True

    def __init__(self, model: Any, tokenizer: Any) -> None:
        kind = model.config.model_type
        if hasattr(model.config, "text_config") and kind not in families.known_types():
            raise CheckpointError(
                f"{kind} has a text decoder inside: to prune that, give the folder of the model instead"
            )
        self._decoder = Decoder(model)
        self._tokenizer = tokenizer
        self._tokenize = None if tokenizer is None else Tokenizer(tokenizer)
        self.config = model.config
        self.name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)

    @property
    def device(self) -> torch.device:
        return self._decoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self._decoder.dtype

    def shape(self) -> ModelShape:
        return model_shape(self._decoder.model, self._decoder.family, self._decoder.dtype)

    def load(self, group_size: int | None = None) -> Decoder:
        return self._decoder

    def tensors(self) -> TensorSource:
        self._decoder.check_plain("a checkpoint of it")
        return ModuleTensors(self._decoder.model)

    def check_export(self, candidates: Collection[int], fold: str | None, replaces: bool) -> None:
        super().check_export(candidates, fold, replaces)
        if fold is not None:
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

    @property
    def base(self) -> str | None:
        return str(getattr(self.config, "_name_or_path", "")) or None

    def licence(self) -> Licence:
        folder = Path(self.name)
        return read_licence(folder) if folder.is_dir() else Licence()

    @property
    def tokenize(self) -> Tokenize | None:
        return self._tokenize

    @property
    def vocab_size(self) -> int:
        return self._decoder.vocab_size

    @property
    def position_rows(self) -> int | None:
        return self._decoder.position_rows

    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.raw_config(), sort_keys=True).encode())
        for name, tensor in self._decoder.model.state_dict().items():
            sample = tensor.detach().flatten()[:: max(1, tensor.numel() // 64)].double().cpu()
            digest.update(f"{name}:{list(tensor.shape)}:".encode() + sample.numpy().tobytes())
        return digest.hexdigest()


def position_rows(config: Any) -> int | None:
    """Positions that a model of ``config`` has a table for; None where they are computed."""
    learned = len(families.find(config.model_type).embeddings) > 1
    return int(config.max_position_embeddings) if learned else None


def open_subject(
    model: Any, *, dtype: str, device: str, tokenizer: Any, allow_pickle: bool, attention: str = "auto"
) -> Subject:
    """A :class:`Subject` from a folder, a hub id or a model object, with everything checked but no weights loaded."""
    if isinstance(model, str | Path):
        return FolderSubject(resolve_model(model, allow_pickle), str(model), dtype, device, allow_pickle, attention)
    return ModelSubject(model, tokenizer)


def stored_as(model: str | Path) -> tuple[str | None, str | None]:
    """The method by which a checkpoint is quantised, and the larger model whose text decoder it is, if so; only its
    config is fetched."""
    folder = resolve_model(model, weights=False)
    config = read_config(folder)
    stated = quantisation(config)
    return None if stated is None else method_of(stated), text_decoder_of(folder, config)


def _over_layers(decoder: Decoder, tensors: Callable[[int], list[str]]) -> list[str]:
    """Names of tensors inside a layer, each once, of all layers: they may be of several kinds."""
    prefix = f"{decoder.family.layers}."
    found = (name.removeprefix(prefix) for layer in range(decoder.num_layers) for name in tensors(layer))
    return list(dict.fromkeys(name.partition(".")[2] for name in found))


def describe(model: str | Path, *, allow_pickle: bool = False) -> dict[str, Any]:
    """What the adapter sees in a checkpoint, without loading its weights."""
    folder = resolve_model(model, allow_pickle)
    config = read_config(folder)
    checkpoint = open_checkpoint(folder, allow_pickle)
    skeleton: Any = build_skeleton(config, choose_dtype("auto", config))
    skeleton.tie_weights()
    decoder = Decoder(skeleton)
    family = decoder.family
    return {
        "model": str(model),
        "family": family.name,
        "text_decoder_of": text_decoder_of(folder, config),
        "model_type": config.model_type,
        "layers": decoder.num_layers,
        "hidden_size": decoder.hidden_size,
        "parameters": skeleton.num_parameters(),
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "quantised": summary(config),
        "stored_bytes": sum(checkpoint.nbytes(name) for name in checkpoint.names()),
        "tied_head": decoder.tied,
        "context": getattr(config, "max_position_embeddings", None),
        "layers_stored_as": layers_path(checkpoint, family),
        "writers": _over_layers(decoder, decoder.writer_tensors),
        "readers": [path for path in family.readers if any(path in dict(x.named_modules()) for x in decoder.layers)],
        "needs_care": needs_care(family),
        "norm": family.norm,
        "final_norm": family.final_norm,
        "config_fields_that_follow_the_layers": [
            name for name in family.layer_fields if getattr(config, name, None) is not None
        ],
    }
