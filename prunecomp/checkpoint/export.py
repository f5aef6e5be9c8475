"""A pruned model as a checkpoint: folded, proved, written, read back and told of, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from prunecomp.checkpoint.card import base_name, model_card
from prunecomp.checkpoint.claim import claimed
from prunecomp.checkpoint.fold import FoldPlan, plan_fold
from prunecomp.checkpoint.numbers import check_built_alike
from prunecomp.checkpoint.proof import LayerProof, prove_fold
from prunecomp.checkpoint.recipe import RECIPE, merge_recipe
from prunecomp.checkpoint.rules import renumber_rules
from prunecomp.checkpoint.scales import check_repair, plan_as_stored
from prunecomp.checkpoint.verify import WINDOWS, Measured, Verification, verify_export
from prunecomp.checkpoint.writer import atomic_folder, check_output, write_tensors
from prunecomp.data.windows import Windows
from prunecomp.engine.progress import Progress
from prunecomp.errors import CheckpointError, FoldError
from prunecomp.io.plain import read_object, write_json
from prunecomp.model.config import prune_generation, prune_stored, untold, without_code
from prunecomp.model.files import CARD, GENERATION, STATED
from prunecomp.model.quantised import quantisation
from prunecomp.model.source import ModelSource
from prunecomp.model.stack import LayerStack
from prunecomp.names import RECORD


class Pruned(Protocol):
    """What of a :class:`prunecomp.PruneResult` goes into a checkpoint, and what is learnt of it on the way."""

    model_source: ModelSource
    stack: LayerStack
    calibration: Windows
    verified: Verification | None
    exported: dict[str, Any]
    stages: dict[str, float]
    on_saved: Callable[[], None] | None

    @property
    def may_take_more(self) -> bool: ...

    def measure(self, folder: Path, progress: Progress) -> None:
        """Look at the export in ``folder``, which is whole but for its record and card."""

    def record(self) -> dict[str, Any]: ...


def export(
    result: Pruned,
    out: Path,
    *,
    fold: str,
    command: str,
    shard_bytes: int,
    verify: bool,
    recipe: bool,
    overwrite: bool,
    progress: Progress,
) -> None:
    """Write the checkpoint of ``result`` to the folder ``out``, which is new or, with ``overwrite``, a checkpoint whose
    place it takes, folded in the form ``fold``.

    Raises :class:`FoldError` before anything is written, :class:`prunecomp.errors.OutputError` after.
    """
    source, stack = result.model_source, result.stack
    with claimed(out):
        check_output(out, overwrite, source.base)
        plan, proofs = proved_fold(source, stack, fold, result.calibration.tokens[0])
        decoder = source.load()
        merge = merge_recipe(decoder, plan, source.base, source.layers, source.quantised) if recipe else None
        config = pruned_config(source, stack, plan)
        as_stored = plan_as_stored(plan, decoder, source.plain_tensors(), source.stored)
        with atomic_folder(out, overwrite) as folder:
            digests: dict[str, str] | None = {} if verify else None
            clock = Clock()
            write_tensors(folder, source.tensors(), source.layers, as_stored, shard_bytes, progress, digests)
            write_json(folder / "config.json", config)
            source.write_companions(folder)
            _prune_generation(folder / GENERATION)
            clock.tick("writing")
            result.verified = None if digests is None else _read_back(result, folder, digests, plan, proofs)
            del decoder
            clock.tick("reading back")
            result.measure(folder, progress)
            clock.tick("measuring the export")
            result.exported = {"size": sizes(source, stack, folder), "command": command}
            result.stages = {**result.stages, **clock.seconds}
            record = {**result.record(), "fold_proofs": [asdict(proof) for proof in proofs]}
            write_json(folder / RECORD, record)
            card = model_card(base_name(source.name), record, source.licence(), source.quantised, command)
            (folder / CARD).write_text(card, encoding="utf-8")
            if merge is not None:
                (folder / RECIPE).write_text(merge, encoding="utf-8")
        if result.on_saved is not None:
            result.on_saved()


class Clock:
    """What takes how long, one thing after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def tick(self, what: str) -> None:
        """It is done."""
        since, self._since = self._since, time.perf_counter()
        self.seconds[what] = self._since - since


def sizes(source: ModelSource, stack: LayerStack, folder: Path) -> dict[str, dict[str, int]]:
    """Of the dense model and of its export in ``folder``: parameters, and bytes of their weights as stored."""
    tensors, described = source.tensors(), source.described
    gone = sum(p.numel() for layer in stack.removed for p in described.layers[layer].parameters())
    count = sum(p.numel() for p in described.model.parameters())
    written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {
        "dense": {"parameters": count, "bytes": sum(map(tensors.nbytes, tensors.names()))},
        "pruned": {"parameters": count - gone, "bytes": written},
    }


def proved_fold(
    source: ModelSource, stack: LayerStack, form: str, tokens: torch.Tensor
) -> tuple[FoldPlan, list[LayerProof]]:
    """The fold, proved on every layer it changes, on random rows and on those of a window of ``tokens`` [S].

    Raises :class:`FoldError`.
    """
    decoder = source.load()
    with untold():
        check_built_alike(decoder, stack.alive)
    plan = plan_fold(decoder, stack, form)
    if plan.factors:
        check_form(source, plan.form)
    return plan, prove_fold(decoder, stack, plan, tokens)


def check_form(source: ModelSource, form: str) -> None:
    """Raise :class:`FoldError` where a fold cannot take this form."""
    if form == "down" and source.part_of is not None:
        raise FoldError(
            f"--fold down scales the embedding, and in {source.part_of} images enter the stream beside it, unscaled: "
            "use --fold up"
        )


def check_export(source: ModelSource, candidates: Collection[int], fold: str | None, replaces: bool) -> None:
    """Raise for what is known before any work to have no export: of a compensation that is put in by a ``fold`` of
    this form, and possibly ``replaces`` weights, or of any of the ``candidates``."""
    if fold is not None:
        check_form(source, fold)
    lowest = min(candidates)  # every number above it changes
    alive = tuple(layer for layer in range(source.num_layers) if layer != lowest)
    with untold():
        prune_stored(source.raw_config(), source.config, source.family, source.num_layers, alive)
    source.check_written(folded=fold is not None)
    stated = quantisation(source.config)
    if stated is None:
        return
    if fold is not None:
        check_repair(source.described, source.plain_tensors(), source.stored, replaces)
    _renumbered(source, stated, {layer: number for number, layer in enumerate(alive)})


def pruned_config(source: ModelSource, stack: LayerStack, plan: FoldPlan) -> dict[str, Any]:
    """The ``config.json`` of the export."""
    config = prune_stored(source.raw_config(), source.config, source.family, stack.num_layers, stack.alive)
    config = without_code({name: value for name, value in config.items() if name != STATED}, "config.json")
    stated = config.get("quantization_config")
    if stated is not None:
        config["quantization_config"] = _renumbered(source, stated, plan.renumber)
    return config


def _renumbered(source: ModelSource, stated: Any, renumber: Mapping[int, int]) -> Any:
    """``stated``, the ``quantization_config``, once layers have the numbers of ``renumber``. Raises
    :class:`CheckpointError` for a rule that cannot follow them."""
    modules = {name.rpartition(".")[0] for name in source.tensors().names()}
    return renumber_rules(stated, source.family, source.layers, renumber, modules)


def _prune_generation(path: Path) -> None:
    """Leave out what names layers; a file that has nothing of the kind stays as it is."""
    if path.is_file():
        stored = read_object(path, CheckpointError)
        pruned = prune_generation(stored)
        if pruned != stored:
            write_json(path, pruned)


def _read_back(
    result: Pruned, folder: Path, digests: dict[str, str], plan: FoldPlan, proofs: list[LayerProof]
) -> Verification:
    source, some = result.model_source, result.calibration.take(slice(0, WINDOWS))
    tokens = some.tokens[:, : int(some.each_length.min())]  # padding would be no part of a window
    spare = source.device if result.may_take_more else None
    measured = Measured(source.load(), source.as_loaded(spare), result.stack, plan, proofs)
    return verify_export(folder, digests, measured, tokens, partial(source.load_export, device=spare))
