"""A checkpoint as transformers itself loads it: the judge of what we read."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from prunecomp.engine.placement import MARGIN, free_device_memory, free_host_memory
from prunecomp.errors import CheckpointError
from prunecomp.model.config import pruned_copy, untold
from prunecomp.model.decoder import Decoder
from prunecomp.model.loader import read_config
from prunecomp.model.weights import StoredTensors


def as_transformers_loads(folder: Path, config: Any, dtype: torch.dtype, attention: str) -> Any:
    """The model in ``folder`` on the CPU, by nothing but ``from_pretrained``; a ``config`` of fewer layers loads those
    alone. Raises :class:`CheckpointError` where transformers finds no tensor for a parameter.
    """
    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, config=copy.deepcopy(config), dtype=dtype, attn_implementation=attention,
                trust_remote_code=False, local_files_only=True, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # whatever comes of files that it does not take
        raise CheckpointError(f"{folder}: transformers does not load it ({error})") from error
    model, told = loaded
    missing = sorted(map(str, [*told["missing_keys"], *told.get("mismatched_keys", ())]))
    if missing:
        raise CheckpointError(f"{folder}: transformers finds no tensor that fits {', '.join(missing[:5])}")
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and reports of transformers: tensors of layers left out are no news here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def check_read_alike(decoder: Decoder, folder: Path, config: Any) -> None:
    """Raise :class:`CheckpointError` unless ``decoder`` has what transformers reads in ``folder``: embedding, head,
    final norm and the first layer bit for bit, and the head tied where it ties it.

    The ``config`` is that of the decoder; no more is loaded than is compared.
    """
    family = decoder.family
    with untold():
        first = pruned_copy(config, family, decoder.num_layers, (0,))
    reference = as_transformers_loads(folder, first, decoder.dtype, "eager")
    tied = reference.get_submodule(family.head).weight is reference.get_submodule(family.embeddings[0]).weight
    if tied != decoder.tied:
        raise CheckpointError(
            f"{folder}: transformers {'ties' if tied else 'does not tie'} the head of this model to its embedding, and "
            f"it was read with {'one of its own' if tied else 'the embedding as its head'}: tie_word_embeddings in "
            "config.json and the tensors of the files contradict each other"
        )
    for name, meant in reference.named_parameters():
        inside = name.startswith(f"{family.layers}.")
        got = decoder.stored(name) if inside else decoder.model.get_parameter(name).detach()
        if not torch.equal(got.to(decoder.dtype).cpu(), meant.detach().to(decoder.dtype)):
            raise CheckpointError(
                f"{folder}: {name} is not what transformers reads there: do several files hold it, or several names?"
            )


SEVERAL = 4
"""Times what a model takes: what there must be of a GPU's memory for it to lie there, beside copies of its largest
parts in float32 and float64."""


def whole_by_transformers(
    folder: Path, tensors: StoredTensors, attention: str, device: torch.device | None = None
) -> Any | None:
    """A whole model in main memory, or on the ``device`` where it has ample room, in a dtype that rounds nothing; None
    where memory does not hold it so."""
    names = tensors.names()
    dtype = max((tensors.dtype(name) for name in names), key=lambda d: (d.is_floating_point, d.itemsize))
    if len({tensors.dtype(name) for name in names if tensors.dtype(name).itemsize == 2}) > 1:
        dtype = torch.float32  # of bfloat16 and float16 neither holds the other
    needed = sum(tensors.nbytes(name) // tensors.dtype(name).itemsize for name in names) * dtype.itemsize
    if needed > free_host_memory() * (1 - MARGIN):
        return None
    flash = attention.startswith("flash_attention")
    loaded = as_transformers_loads(folder, read_config(folder), dtype, "sdpa" if flash else attention)
    if device is not None and device.type == "cuda" and SEVERAL * needed < free_device_memory(device) * (1 - MARGIN):
        loaded = loaded.to(device)  # it is gone through several times
    return loaded
