"""From a local folder or a hub id to a decoder in memory: skeleton first, then one tensor after another."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
)
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from prunecomp.errors import CheckpointError, NumericalError, OptionError, PrunecompError
from prunecomp.io.plain import read_object
from prunecomp.io.values import device_name, names_a_path, shown
from prunecomp.model.checks import (
    check_config,
    check_counts,
    check_depth,
    check_in_memory,
    check_layers,
    check_names,
    check_tensors,
    parameter_places,
    tie_as_stored,
)
from prunecomp.model.decoder import Decoder
from prunecomp.model.families import families
from prunecomp.model.gguf import checkpoint_of_gguf, gguf_of
from prunecomp.model.hub import fetched
from prunecomp.model.quantised import check_quantisation, dequantised, method_of, quantisation
from prunecomp.model.stored import under_model_names
from prunecomp.model.streaming import StreamedWeights
from prunecomp.model.unwrap import check_no_adapter_folder, structure_of
from prunecomp.model.weights import StoredTensors, all_finite, open_checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve_model(model: str | Path, allow_pickle: bool = False, weights: bool = True, dtype: str = "auto") -> Path:
    """The local folder of a model: the path itself, a snapshot of a hub repository in the local cache, of its config
    alone without ``weights``, or a GGUF dequantised to ``dtype``."""
    if not isinstance(model, str | Path):
        raise OptionError(f"model: give a local folder or a hub id, not {type(model).__name__}")
    if not str(model).strip() or not names_a_path(str(model)):
        raise OptionError(f"model {shown(str(model))}: give a local folder or a hub id")
    path = Path(model)
    if len(os.fsencode(path.name)) > 255 or len(os.fsencode(path)) > 4095:
        raise OptionError(f"model {shown(str(model))}: no folder and no hub id has so long a name")
    if not str(model).isascii() and str(model) != os.fsencode(path).decode(errors="replace"):
        raise OptionError(f"model {shown(str(model))}: its name is no text in UTF-8, and safetensors reads no other")
    text = str(model)
    try:
        file = gguf_of(path)
        if file is not None:
            return checkpoint_of_gguf(file, DTYPES.get(dtype))
        if path.is_dir():
            check_no_adapter_folder(path)
            if not (path / "config.json").is_file():
                raise CheckpointError(f"{path} has no config.json: not a Hugging Face checkpoint")
            return path
        if path.exists():
            raise CheckpointError(f"{path} is a file and no .gguf; give the folder with config.json and the weights")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be looked into ({error.strerror})") from error
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise CheckpointError(f"{path} does not exist")
    folder = fetched(text, allow_pickle, weights)
    check_no_adapter_folder(folder)
    return folder


def read_config(folder: Path) -> Any:
    """The configuration of a known family, of a multimodal model that of its text decoder; code that comes with a
    checkpoint is never run.

    Raises :class:`CheckpointError` for one that cannot be, or that contradicts itself.
    """
    path = folder / "config.json"
    stated = read_object(path, CheckpointError)
    _check_stated(stated, path)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # what a value of the wrong kind raises is up to the class of the config
        raise CheckpointError(f"{path} cannot be used: {reason_of(error)}") from error
    check_quantisation(config, folder)
    text: Any = getattr(config, "text_config", None)
    if text is not None and config.model_type not in families.known_types():
        if quantisation(text) is not None and quantisation(config) is None:
            raise CheckpointError(f"{path}: a quantization_config inside of text_config is not read; one beside it is")
        text.tie_word_embeddings = config.tie_word_embeddings  # the larger model's word counts: it has the head
        text.dtype = text.dtype or config.dtype
        if quantisation(config) is not None:
            text.quantization_config = config.quantization_config
        config = text
    inner = stated.get("text_config") if config is text else stated
    check_names(inner if isinstance(inner, dict) else {}, type(config).attribute_map, path)
    check_config(config, families.find(config.model_type), path)
    return config


def _check_stated(stated: dict[str, Any], path: Path) -> None:
    """What can be told of a file before it is made into a config, where the field can be named."""
    kind = stated.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise CheckpointError(f"{path}: model_type is {kind!r}; a name belongs there")
    if kind is not None and kind in CONFIG_MAPPING:
        check_counts(stated, CONFIG_MAPPING[kind].attribute_map, path)
    for name in ("dtype", "torch_dtype"):
        dtype = stated.get(name)
        if dtype is not None and not isinstance(getattr(torch, str(dtype), None), torch.dtype):
            raise CheckpointError(f"{path}: {name} is {dtype!r}; one of {', '.join(DTYPES)} belongs there")
    for part in (stated, *stated.values()):  # before lists of so many entries are made
        for name in ("num_hidden_layers", "n_layer") if isinstance(part, dict) else ():
            check_depth(part.get(name), name, path)


def reason_of(error: Exception) -> str:
    """An error of transformers in one paragraph, without advice to trust a checkpoint's code: that is not done here."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in text:
        return (
            "it is of a kind that transformers itself does not have, and code that comes with a model is never run here"
        )
    return f"{text[:500]} ..." if len(text) > 500 else text


def text_decoder_of(folder: Path, config: Any) -> str | None:
    """The ``model_type`` of the multimodal model in ``folder`` whose text decoder has this ``config``; None if the
    decoder is all there is."""
    stated = read_object(folder / "config.json", CheckpointError)
    inside = "text_config" in stated and stated.get("model_type") != config.model_type
    return str(stated.get("model_type")) if inside else None


def build_skeleton(
    config: Any, dtype: torch.dtype, attention: str | None = None, checkpoint: StoredTensors | None = None
) -> nn.Module:
    """The model with every parameter on the meta device, in ``dtype``; the buffers it computes itself are real.

    Without ``attention`` transformers chooses: it matters only where the skeleton is filled and run. A quantised
    checkpoint has the skeleton of a plain one: its weights are dequantised when they are read. A ``checkpoint``, under
    the names of the model, is held to it, and decides whether the head is tied.

    Raises :class:`CheckpointError` for a config of which there is no model, or that is not that of the ``checkpoint``.
    """
    if quantisation(config) is not None:
        config = copy.deepcopy(config)
        del config.quantization_config
    family = families.find(config.model_type)
    if checkpoint is not None:
        check_layers(checkpoint, config, family)  # first: a config may tell of more layers than can be made
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
        model.tie_weights(recompute_mapping=False)
        if checkpoint is not None:
            check_tensors(model, checkpoint)
        _make_buffers(model)
    except PrunecompError:
        raise
    except Exception as error:  # a layer's constructor takes the config at its word
        raise CheckpointError(
            f"config.json: there is no {family.name} model of this shape: {_field_of(error, config)}"
        ) from error
    if checkpoint is not None:
        tie_as_stored(model, checkpoint)
    model.eval()
    return model  # type: ignore[no-any-return]


def _field_of(error: Exception, config: Any) -> str:
    """What went wrong; of a name that is not known, the field that has it."""
    if isinstance(error, KeyError):
        held = config.to_dict()
        held.update(entry for value in list(held.values()) if isinstance(value, dict) for entry in value.items())
        for field, value in held.items():
            if isinstance(value, str) and error.args[:1] == (value,):
                return f"{field} is {value!r}, which is not known"
    return f"{type(error).__name__}: {reason_of(error)}"


def _make_buffers(model: Any) -> None:
    for module in model.modules():
        computed = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in computed:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        if computed:
            model._init_weights(module)


def choose_dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    """The dtype to compute in on ``device``: as named, or with ``auto`` that of the checkpoint; float32, which holds
    every value of it, where that is a 16-bit one without products on this processor."""
    if name == "auto":
        stated = getattr(config, "dtype", None) or torch.float32
        chosen = str(stated).removeprefix("torch.")
        if chosen not in DTYPES:
            raise CheckpointError(
                f"config.json: dtype is {chosen}, in which no model runs; {', '.join(DTYPES)} are known"
            )
        return DTYPES[chosen] if multiplies(DTYPES[chosen], device) else torch.float32
    return DTYPES[name]


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether PyTorch has fast matrix products in ``dtype`` on ``device``. On a CPU without AVX-512, oneDNN leaves
    16-bit products to a fallback at a sixth of float32's rate (``benchmarks/README.md``)."""
    if device.type != "cpu" or dtype.itemsize > 2:
        return True
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    return torch.backends.mkldnn.is_available() and bool(getattr(torch.ops.mkldnn, supported)())


def choose_attention(name: str, config: Any, device: torch.device, dtype: torch.dtype) -> str:
    """The attention implementation of transformers to build a model of ``config`` with.

    ``auto`` takes flash-attn where it is installed and the card, the dtype and the family suit it, else PyTorch's SDPA,
    which picks its own flash kernel, or ``eager`` for families that SDPA does not know (soft caps and sinks). Raises
    :class:`OptionError` for one that is asked for by name and cannot run.
    """
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    knows_flash = getattr(model, "_supports_flash_attn", True) and not getattr(
        model, "_compatible_flash_implementations", None
    )
    knows_sdpa = getattr(model, "_supports_sdpa", True)
    available = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    suits = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if name in available:
        if not suits:
            raise OptionError(f"--attn {name} needs a CUDA device and 16-bit floats; this run has {dtype} on {device}")
        if not knows_flash:
            raise OptionError(f"--attn {name}: {config.model_type} does not run with it; use --attn auto")
        if not available[name]():
            raise OptionError(f"--attn {name} is not installed: pip install 'prunecomp[flash-attn]'")
    if name == "sdpa" and not knows_sdpa:
        raise OptionError(f"--attn sdpa: {config.model_type} does not run with it; use --attn auto or eager")
    if name != "auto":
        return name
    if suits and knows_flash and torch.cuda.get_device_capability(device) >= (8, 0):
        for flash in ("flash_attention_3", "flash_attention_2"):
            if available[flash]():
                return flash
    return "sdpa" if knows_sdpa else "eager"


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, number = device_name("--device", name).partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"--device {name}: this PyTorch ({torch.__version__}) sees no CUDA device; use --device cpu")
    if colon and int(number) >= torch.cuda.device_count():
        raise OptionError(f"--device {name}: the last card here is cuda:{torch.cuda.device_count() - 1}")
    return torch.device(name)


def fill_skeleton(
    model: Any,
    checkpoint: StoredTensors,
    dtype: torch.dtype,
    device: torch.device,
    leave: str | None = None,
) -> None:
    """Give every parameter its tensor from the checkpoint, converted and moved on its own, and tie what is tied.

    The checkpoint is the one that the skeleton was built with. Parameters under the prefix ``leave`` stay on the meta
    device: they are streamed later.
    """
    held = set(checkpoint.names())
    places = parameter_places(model)
    for name, module, leaf in places:
        if name not in held or (leave is not None and name.startswith(f"{leave}.")):
            continue
        tensor = checkpoint.read(name).to(device)
        if not all_finite(tensor):
            raise NumericalError(f"{checkpoint.location(name)}: {name} holds NaN or infinite weights")
        module._parameters[leaf] = nn.Parameter(tensor.to(dtype), requires_grad=False)
    # As transformers has it: a head whose embedding is not there is tied the other way round.
    model.tie_weights(missing_keys={name for name, _, _ in places} - held, recompute_mapping=False)
    for prefix, module in model.named_modules():
        for leaf, buffer in module.named_buffers(recurse=False):
            name = f"{prefix}.{leaf}" if prefix else leaf
            stored = name in held and leaf not in module._non_persistent_buffers_set
            module._buffers[leaf] = (checkpoint.read(name) if stored else buffer).to(device)


def load_decoder(
    folder: Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    allow_pickle: bool = False,
    group_size: int | None = None,
    attention: str = "auto",
) -> Decoder:
    """Load a checkpoint folder. Each tensor is read from the memory-mapped file straight to its place, so that the
    process never holds a second copy of the model. With ``group_size`` the layers' weights are not loaded but streamed,
    that many layers at a time.

    Raises :class:`CheckpointError` for files that are missing, damaged or of an unknown family, and
    :class:`NumericalError` for weights that are not finite.
    """
    config = read_config(folder)
    place = choose_device(device)
    target = choose_dtype(dtype, config, place)
    family = families.find(config.model_type)
    checkpoint = under_model_names(dequantised(open_checkpoint(folder, allow_pickle), config), family)
    model: Any = build_skeleton(config, target, choose_attention(attention, config, place, target), checkpoint)
    if group_size is None:
        fill_skeleton(model, checkpoint, target, place)
        return Decoder(model, source=checkpoint)
    fill_skeleton(model, checkpoint, target, place, leave=family.layers)
    layers = list(model.get_submodule(family.layers).children())
    prefixes = [f"{family.layers}.{number}" for number in range(len(layers))]
    weights = StreamedWeights(layers, prefixes, checkpoint, target, place, group_size)
    return Decoder(model, weights, checkpoint)


def decoder_of(model: Any) -> Decoder:
    """The decoder of a model object, as it is and where it is.

    Raises what :func:`structure_of` does, and :class:`CheckpointError` for a model that is not in memory, or another
    than its config says.
    """
    decoder = structure_of(model)
    check_config(decoder.config, decoder.family, Path("the model's config"))
    if getattr(decoder.model, "_hf_peft_config_loaded", False):
        raise CheckpointError("this model has an adapter: merge it into the weights, or take it out, first")
    check_in_memory(decoder.model)
    if not isinstance(decoder.head.weight, torch.Tensor):
        raise CheckpointError(
            "the head of this model is quantised, and has no weight to look at: give the model as it was"
        )
    return decoder


def check_as_built(decoder: Decoder) -> None:
    """Raise :class:`CheckpointError` for a model in memory that is another than its config makes: a checkpoint of it
    could be written, and nobody could load it."""
    model, family = decoder.model, decoder.family
    if getattr(model, "hf_quantizer", None) is not None:
        return  # what becomes of its modules is up to the method; that it holds no plain weights is told elsewhere
    stated = quantisation(model.config)
    if stated is not None:
        raise CheckpointError(
            f"the model's config states a quantization_config ({method_of(stated)}), and its weights are plain: "
            "del model.config.quantization_config first"
        )
    skeleton: Any = build_skeleton(copy.deepcopy(model.config), decoder.dtype)
    meant, held = (
        {name: tuple(module._parameters[leaf].shape) for name, module, leaf in parameter_places(each)}
        for each in (skeleton, model)
    )
    for name in {**meant, **held}:
        if meant.get(name) != held.get(name):
            has, wants = (list(each[name]) if name in each else "nothing" for each in (held, meant))
            raise CheckpointError(
                f"this model is not what its config makes: its {name} is {has}, where {wants} belongs, and no "
                "checkpoint of it could be loaded. Give the model before it was compiled, wrapped or changed, or "
                "correct its config"
            )
    if decoder.tied and skeleton.get_submodule(family.head).weight is not skeleton.get_input_embeddings().weight:
        raise CheckpointError(
            "the head of this model is its embedding, and its config does not say so: set "
            "model.config.tie_word_embeddings = True, or give the head a weight of its own"
        )
