"""What can be said of a checkpoint without loading its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunecomp.model.decoder import Decoder
from prunecomp.model.families.document import needs_care
from prunecomp.model.gguf import gguf_of, gguf_types
from prunecomp.model.loader import (
    read_config,
    resolve_model,
    text_decoder_of,
)
from prunecomp.model.quantised import method_of, quantisation, summary
from prunecomp.model.source.folder import FolderSource


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
    file = gguf_of(Path(model))
    model_source = FolderSource(resolve_model(model, allow_pickle), str(model), "auto", "cpu", allow_pickle)
    config, checkpoint = model_source.config, model_source.tensors()
    decoder = model_source.described
    family = decoder.family
    return {
        "model": str(model),
        "family": family.name,
        "text_decoder_of": model_source.part_of,
        "model_type": config.model_type,
        "layers": decoder.num_layers,
        "hidden_size": decoder.hidden_size,
        "parameters": decoder.model.num_parameters(),
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "quantised": summary(config) if file is None else f"GGUF ({gguf_types(file)}), dequantised when it is read",
        "stored_bytes": sum(checkpoint.nbytes(name) for name in checkpoint.names()),
        "tied_head": decoder.tied,
        "context": getattr(config, "max_position_embeddings", None),
        "layers_stored_as": model_source.layers,
        "writers": _over_layers(decoder, decoder.writer_tensors),
        "readers": [path for path in family.readers if any(path in dict(x.named_modules()) for x in decoder.layers)],
        "needs_care": needs_care(family),
        "norm": family.norm,
        "final_norm": family.final_norm,
        "config_fields_that_follow_the_layers": [
            name for name in family.layer_fields if getattr(config, name, None) is not None
        ],
    }
