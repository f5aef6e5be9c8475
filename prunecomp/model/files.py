"""Which files of a folder are the model's weights: those that transformers would load, and no others."""

from __future__ import annotations

import warnings
from pathlib import Path

from prunecomp.errors import CheckpointError, PrunecompWarning
from prunecomp.io.plain import read_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
STATED = "transformers_weights"
"""The field of a config that names a file of weights; it goes before the usual names."""

ADAPTER = "adapter_config.json"
GENERATION = "generation_config.json"
CARD = "README.md"

WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".onnx_data", ".h5", ".msgpack", ".ot",
    ".tflite", ".mlmodel", ".mlpackage", ".engine", ".npz", ".nemo", ".llamafile", ".pte", ".distcp",
)  # fmt: skip
"""How the names of files end that hold weights, in whatever format."""


def is_index(file: str) -> bool:
    return file.endswith(".index.json")


def is_safe(file: str) -> bool:
    return file.removesuffix(".index.json").endswith(".safetensors")


def weights_file(folder: Path, allow_pickle: bool = False) -> str:
    """The name of the file, or of the index, that transformers would load the weights in ``folder`` from.

    That is the one that the config states, else ``model.safetensors``, else the index of its shards, else a pickle. A
    warning tells where two of the first three differ. Raises :class:`CheckpointError` where there is none, and for an
    adapter, for which transformers would load another model.
    """
    if (folder / ADAPTER).is_file():
        raise CheckpointError(
            f"{folder / ADAPTER}: an adapter lies here, and transformers would load the model that it names instead of "
            "this one. Merge it into its model (merge_and_unload in peft) and save that, or remove the adapter's files"
        )
    stated = _stated(folder)
    safe = [file for file in (SINGLE, INDEX) if (folder / file).is_file()]
    if stated is None and not safe:
        if allow_pickle:
            safe = [file for file in PICKLES if (folder / file).is_file()]
        if not safe:
            raise CheckpointError(_absence(folder))
    file = stated or safe[0]
    others = [other for other in safe if other != file and not _is_part(folder, file, other)]
    if others:
        warnings.warn(
            f"{folder} holds both {file} and {', '.join(others)}: the first is taken, as transformers does; remove "
            "what is left over",
            PrunecompWarning,
            stacklevel=2,
        )
    return file


def _stated(folder: Path) -> str | None:
    if not (folder / "config.json").is_file():
        return None
    stated = read_object(folder / "config.json", CheckpointError).get(STATED)
    if stated is None:
        return None
    if not isinstance(stated, str) or Path(stated).name != stated or not is_safe(stated):
        raise CheckpointError(
            f"{folder / 'config.json'}: {STATED} is {stated!r}; a .safetensors file here belongs there"
        )
    if not (folder / stated).is_file():
        raise CheckpointError(f"{folder / stated} is missing, though {STATED} in config.json names it")
    return stated


def _is_part(folder: Path, file: str, other: str) -> bool:
    """Whether two are one: an index that places all in ``file``, or in ``other`` the index of which is ``file``."""
    index, single = (file, other) if is_index(file) else (other, file)
    try:
        return is_index(index) and set(read_index(folder / index).values()) == {single}
    except CheckpointError:  # an index that is not read is none; one that is, is told of then
        return False


def _absence(folder: Path) -> str:
    for file in (SINGLE, INDEX):
        if (folder / file).is_symlink():
            return f"{folder / file} is a link to nothing: is the download complete?"
    pickles = [file for file in PICKLES if (folder / file).exists()]
    if pickles:
        return (
            f"{folder} holds a pickle checkpoint ({pickles[0]}), which can run code when it is "
            "read. Convert it to safetensors, or pass --allow-pickle to read it with weights_only=True."
        )
    others = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS)
    more = f". What lies there goes by other names, which transformers does not load: {', '.join(others[:5])}"
    return f"{folder} has neither {SINGLE} nor {INDEX}: no weights to read{more if others else ''}"


def read_index(path: Path) -> dict[str, str]:
    """From the names of tensors to the files that hold them. Raises :class:`CheckpointError` for anything else."""
    remedy = "not a safetensors index: no readable 'weight_map'"
    entries = read_object(path, CheckpointError, remedy).get("weight_map")
    if not isinstance(entries, dict) or not entries or not all(isinstance(file, str) for file in entries.values()):
        raise CheckpointError(f"{path} is {remedy}")
    for name, file in entries.items():
        if Path(file).name != file or file in ("", ".", ".."):
            raise CheckpointError(f"{path} places {name!r} in {file!r}: a shard must lie in the folder itself")
    return entries
