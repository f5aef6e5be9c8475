"""Commands that score and remove layers."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

import prunecomp
from prunecomp.checkpoint.claim import claimed
from prunecomp.checkpoint.export import RECORD
from prunecomp.checkpoint.recipe import RECIPE, check_recipe
from prunecomp.checkpoint.writer import DEFAULT_SHARD_BYTES, check_output
from prunecomp.cli.options import (
    EXIT_CODES,
    AllowPickle,
    Attention,
    Backend,
    Bos,
    Calibration,
    Compensation,
    Compile,
    Confidence,
    Device,
    DeviceMemory,
    Disk,
    Documents,
    Dtype,
    DtypeOption,
    Fold,
    Given,
    HostMemory,
    Json,
    Lookahead,
    Metric,
    Model,
    Parity,
    Samples,
    Seed,
    Seqlen,
    Span,
    parse_layers,
    parse_order,
    parse_shard_size,
    parse_size,
)
from prunecomp.cli.shell import app, print_json, progress_on_stderr, reporting
from prunecomp.engine.parallel import from_leader, process_group
from prunecomp.engine.progress import silent
from prunecomp.errors import CheckpointError, JournalError
from prunecomp.io.plain import json_text, parse_json, read_object
from prunecomp.model.source import stored_as
from prunecomp.model.weights import open_checkpoint
from prunecomp.pruning.journal import differences, journal_path
from prunecomp.pruning.result import PruneResult
from prunecomp.report.console import Console
from prunecomp.report.tables import perplexity_table, rounds_table, scores_table


def occupy(held: ExitStack, out: Path, resume: bool) -> bool:
    """Have nobody else write to ``out``, and nothing be there: but what a run left that was killed when its checkpoint
    was whole and its journal not yet removed. Whether there is such a checkpoint."""
    held.enter_context(claimed(out))
    whole = resume and journal_path(out).is_file() and (out / RECORD).is_file()
    if not whole:
        check_output(out)
    return whole


def own_record(result: PruneResult, out: Path, eval: str | None, verify: bool, recipe: bool) -> dict[str, Any]:
    """The record of the checkpoint in ``out``. Raises :class:`JournalError` unless it is that of ``result``, with what
    was asked for beside it, and its weights are there."""
    record = read_object(out / RECORD, JournalError)
    asked = parse_json(json_text(result.record()), "the record", JournalError)
    there, here = ({key: one.get(key) for key in ("options", "rounds")} for one in (record, asked))
    for one in (there, here):
        if isinstance(one["options"], dict):
            one["options"].pop("device", None)
    measured = record.get("perplexity")
    there["eval"], here["eval"] = measured.get("source") if isinstance(measured, dict) else None, eval
    if verify:  # more was done than is asked for where it is off
        there["verify"], here["verify"] = record.get("verified") is not None, True
    if recipe:
        there["recipe"], here["recipe"] = (out / RECIPE).is_file(), True
    differing = differences(there, here)
    if differing:
        raise JournalError(
            f"{out} holds the checkpoint of another run: " + "; ".join(differing) + ". Give the same model, data and "
            "options, or another --out"
        )
    try:
        open_checkpoint(out)
    except CheckpointError as error:
        raise JournalError(f"{out} is not whole any more ({error}): remove it, and give the same command") from error
    return record


@app.command(
    epilog="Example: prunecomp prune examples/reference_model --layers 6 --calibration calibration.txt "
    "--eval evaluation.txt --out pruned. " + EXIT_CODES
)
@reporting
def prune(
    model: Model,
    layers: Annotated[int, typer.Option(min=1, help="how many layers to remove", show_default=False)],
    calibration: Calibration,
    out: Annotated[Path, typer.Option(help="new folder for the pruned checkpoint", show_default=False)],
    samples: Samples = 128,
    seqlen: Seqlen = None,
    seed: Seed = 0,
    documents: Documents = False,
    bos: Bos = "auto",
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    metric: Metric = "bi",
    compensation: Compensation = "scale",
    one_shot: Annotated[bool, typer.Option("--one-shot", help="rank once instead of after each removal")] = False,
    keep: Annotated[str | None, typer.Option(help="layers that must stay, as in 0-3,31", show_default=False)] = None,
    candidates: Annotated[str | None, typer.Option(help="layers that alone may go", show_default=False)] = None,
    given: Given = None,
    span: Span = None,
    lookahead: Lookahead = False,
    confidence: Confidence = None,
    parity: Parity = None,
    fold: Annotated[Fold, typer.Option(help="divide writers above the seams, or multiply those below")] = Fold.up,
    eval: Annotated[str | None, typer.Option(help="text to measure perplexity on", show_default=False)] = None,
    max_shard_size: Annotated[float, typer.Option(help="GB a file of the export")] = DEFAULT_SHARD_BYTES / 1e9,
    verify: Annotated[bool, typer.Option(help="read the export back before it gets its name")] = True,
    recipe: Annotated[
        bool, typer.Option("--recipe", help="also write a mergekit.yml that makes the same weights")
    ] = False,
    attn: Attention = "auto",
    compile: Compile = "auto",
    backend: Backend = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    disk: Disk = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the journal of an interrupted run")] = False,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Remove layers, compensate, and write an ordinary Hugging Face checkpoint."""
    shard_bytes = parse_shard_size("--max-shard-size", max_shard_size)
    with process_group(device) as job, ExitStack() as held:
        # The first process alone looks and writes: others may be on machines that do not see the folder.
        whole = from_leader(lambda: occupy(held, out, resume))
        if recipe:
            check_recipe(fold.value, compensation, model, *stored_as(model))
        progress = progress_on_stderr() if job.leads else silent
        result = prunecomp.prune(
            model, layers, calibration, samples=samples, seqlen=seqlen, seed=seed, documents=documents, bos=bos,
            dtype=dtype.value, device=job.device, metric=metric, compensation=compensation, one_shot=one_shot,
            keep=parse_layers("--keep", keep) or [], candidates=parse_layers("--candidates", candidates),
            given=parse_order("--given", given), span=span, lookahead=lookahead, confidence=confidence, parity=parity,
            fold=fold.value, eval=None if whole else eval, allow_pickle=allow_pickle, attn=attn, compile=compile,
            backend=backend, device_memory=parse_size("--device-memory", device_memory),
            host_memory=parse_size("--host-memory", host_memory), disk=disk, journal=journal_path(out), resume=resume,
            progress=progress,
        )  # fmt: skip
        if job.leads and whole:
            record = own_record(result, out, eval, verify, recipe)
            if result.on_saved is not None:
                result.on_saved()
        elif job.leads:
            result.save(
                out,
                shard_bytes=shard_bytes,
                verify=verify,
                recipe=recipe,
                progress=progress,
                command=shlex.join(["prunecomp", *(word for word in sys.argv[1:] if word != "--resume")]),
            )
    if not job.leads:
        return
    if as_json:
        print_json({key: value for key, value in record.items() if key != "fold_proofs"} if whole else result.record())
        return
    console = Console(soft_wrap=whole)
    if whole:
        console.print(f"{out} was whole when the run was killed: nothing is left to do", markup=False)
        return
    console.print(rounds_table(result))
    table = perplexity_table(result)
    if table is not None:
        console.print(table)
    console.print(f"{result.layer_forwards:g} layer-forwards, {result.seconds:.1f} s; wrote {out}", highlight=False)


@app.command(epilog="Example: prunecomp score examples/reference_model --calibration calibration.txt. " + EXIT_CODES)
@reporting
def score(
    model: Model,
    calibration: Calibration,
    samples: Samples = 128,
    seqlen: Seqlen = None,
    seed: Seed = 0,
    documents: Documents = False,
    bos: Bos = "auto",
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    metric: Metric = "bi",
    compensation: Compensation = "scale",
    given: Given = None,
    span: Span = None,
    lookahead: Lookahead = False,
    parity: Parity = None,
    attn: Attention = "auto",
    compile: Compile = "auto",
    backend: Backend = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    disk: Disk = None,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Score every layer once, and change nothing."""
    with process_group(device) as job:
        result = prunecomp.score(
            model, calibration, samples=samples, seqlen=seqlen, seed=seed, documents=documents,
            bos=bos, dtype=dtype.value,
            device=job.device, metric=metric, compensation=compensation, given=parse_order("--given", given), span=span,
            lookahead=lookahead, parity=parity, allow_pickle=allow_pickle, attn=attn, compile=compile, backend=backend,
            device_memory=parse_size("--device-memory", device_memory),
            host_memory=parse_size("--host-memory", host_memory), disk=disk,
            progress=progress_on_stderr() if job.leads else silent,
        )  # fmt: skip
    if not job.leads:
        return
    if as_json:
        print_json(result.record())
    else:
        Console().print(scores_table(result))
