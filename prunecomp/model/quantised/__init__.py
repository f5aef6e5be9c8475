"""Checkpoints whose weights are stored quantised: read as the numbers they stand for, written as they are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from prunecomp.errors import CheckpointError, PrunecompError
from prunecomp.io.plain import read_object
from prunecomp.model.quantised import bitsandbytes, compressed, fp8, mxfp4, packed
from prunecomp.model.quantised.stored import Dequantised, Settings, StoredWeight
from prunecomp.model.weights import StoredTensors


class Method(NamedTuple):
    """A way to store weights: where each weight is, and what raises for a variant that cannot be read, if there is."""

    weights: Callable[[StoredTensors, Settings], dict[str, StoredWeight]]
    check: Callable[[Settings, str], None] = lambda stated, where: None


SHOWN = (
    "load_in_4bit",
    "bnb_4bit_quant_type",
    "load_in_8bit",
    "format",
    "checkpoint_format",
    "version",
    "bits",
    "group_size",
    "desc_act",
    "weight_block_size",
)

ELSEWHERE = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""What other software (ModelOpt, AutoGPTQ, AutoAWQ) says of quantised weights in a file of its own."""

METHODS = {
    "fp8": Method(fp8.weights, fp8.check),
    "mxfp4": Method(mxfp4.weights),
    "bitsandbytes": Method(bitsandbytes.weights),  # four bits have a state in the files, which says what is to be known
    "compressed-tensors": Method(compressed.weights, compressed.check),
    "gptq": Method(packed.gptq_weights, packed.check_gptq),
    "awq": Method(packed.awq_weights, packed.check_awq),
}


def quantisation(config: Any) -> dict[str, Any] | None:
    """The ``quantization_config`` of a model's configuration, if there is one."""
    stated = getattr(config, "quantization_config", None)
    if stated is None:
        return None
    return dict(stated) if isinstance(stated, dict) else dict(stated.to_dict())


def method_of(stated: Settings) -> str:
    """``quant_method`` as a name."""
    return str(getattr(stated.get("quant_method"), "value", stated.get("quant_method") or "unnamed"))


def check_quantisation(config: Any, folder: Path) -> None:
    """Raise :class:`CheckpointError` for weights in a quantised format that cannot be read here."""
    stated = quantisation(config)
    if stated is None:
        _check_elsewhere(folder)
        return
    where, method = str(folder / "config.json"), method_of(stated)
    if method not in METHODS:
        raise CheckpointError(
            f"{where}: the weights are quantised ({method}), a format that is not read; {', '.join(METHODS)} are. "
            "Prune the checkpoint it was made from, and quantise that"
        )
    with _settings(where):
        METHODS[method].check(stated, where)


@contextmanager
def _settings(where: str) -> Iterator[None]:
    """Turn what a setting of the wrong kind raises into a sentence."""
    try:
        yield
    except PrunecompError:
        raise
    except Exception as error:
        raise CheckpointError(f"{where}: the quantization_config cannot be used ({error!r})") from error


def _check_elsewhere(folder: Path) -> None:
    """Raise :class:`CheckpointError` for weights that another file than ``config.json`` says are quantised."""
    for file in ELSEWHERE:
        if (folder / file).is_file():
            stated = read_object(folder / file, CheckpointError)
            inner = stated.get("quantization", stated)
            inner = inner if isinstance(inner, dict) else {}
            said = (inner.get(name) for name in ("quant_algo", "quant_method", "version", "bits"))
            kind = ", ".join(str(value) for value in said if value is not None) or "quantised"
            raise CheckpointError(
                f"{folder / file} says how weights are quantised ({kind}), and config.json does not. Prune the "
                "checkpoint it was made from, and quantise that; or remove the file, if it is left over beside plain "
                "weights"
            )


def dequantised(files: StoredTensors, config: Any) -> StoredTensors:
    """``files`` under the names of plain weights; as they are where ``config`` states no quantisation.

    Raises :class:`CheckpointError` for a quantisation that is stated and that no weight has: what transformers makes of
    it is not what the weights say.
    """
    stated = quantisation(config)
    if stated is None:
        return files
    method, where = method_of(stated), str(files.folder / "config.json")
    with _settings(where):
        weights = METHODS[method].weights(files, stated)
    if not weights:
        raise CheckpointError(
            f"{where} states a quantization_config ({method}), and no weight in the files is stored so: take it out of "
            "config.json if the weights are plain"
        )
    return Dequantised(files, method, weights)


def summary(config: Any) -> str | None:
    """The method and its bits, groups or blocks in a line, for people; None for plain weights."""
    stated = quantisation(config)
    if stated is None:
        return None
    said = (f"{field.replace('_', ' ')} {stated[field]}" for field in SHOWN if stated.get(field) is not None)
    return ", ".join([method_of(stated), *said])
