"""Commands that look and measure, and change nothing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import prunecomp
from prunecomp.cli.options import (
    EXIT_CODES,
    AllowPickle,
    Attention,
    Bos,
    Device,
    DeviceMemory,
    Disk,
    Dtype,
    DtypeOption,
    HostMemory,
    Json,
    Metric,
    Model,
    Samples,
    Seqlen,
    Span,
    parse_size,
)
from prunecomp.cli.shell import app, print_json, progress_on_stderr, reporting
from prunecomp.engine.parallel import process_group
from prunecomp.engine.progress import silent
from prunecomp.errors import OptionError
from prunecomp.model.source import describe
from prunecomp.ops.backends import describe_backends
from prunecomp.report.console import Console
from prunecomp.report.tables import backends_table, info_table, plan_tables


@app.command(name="eval", epilog="Example: prunecomp eval pruned --eval evaluation.txt. " + EXIT_CODES)
@reporting
def evaluate(
    model: Model,
    eval: Annotated[str, typer.Option(help="as --calibration of prune, or 'wikitext2-test'", show_default=False)],
    seqlen: Seqlen = None,
    bos: Bos = "auto",
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    attn: Attention = "auto",
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    disk: Disk = None,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Perplexity over non-overlapping windows, each standing alone; a remainder is dropped."""
    with process_group(device) as job:
        value = prunecomp.evaluate(
            model, eval, seqlen=seqlen,
            bos=bos, dtype=dtype.value, device=job.device, allow_pickle=allow_pickle, attn=attn,
            device_memory=parse_size("--device-memory", device_memory),
            host_memory=parse_size("--host-memory", host_memory), disk=disk,
            progress=progress_on_stderr() if job.leads else silent,
        )  # fmt: skip
    if not job.leads:
        return
    if as_json:
        print_json({"model": model, "eval": eval, "perplexity": value})
    else:
        Console().print(f"perplexity {value:.3f}", highlight=False)


@app.command(epilog="Example: prunecomp info examples/reference_model --json. " + EXIT_CODES)
@reporting
def info(
    model: Annotated[str | None, typer.Argument(help="local checkpoint folder or hub id", show_default=False)] = None,
    backends: Annotated[bool, typer.Option("--backends", help="what runs the statistics here, and why")] = False,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """What the adapter sees: layers, writers, readers, tied or not; loads no weights. Or the back ends."""
    if model is None and not backends:
        raise OptionError("give a model, or --backends")
    seen: dict[str, Any] = {} if model is None else describe(model, allow_pickle=allow_pickle)
    if as_json:
        print_json({**seen, **({"backends": describe_backends()} if backends else {})})
        return
    console = Console()
    if seen:
        console.print(info_table(seen))
    if backends:
        console.print(backends_table(describe_backends()))


@app.command(epilog="Example: prunecomp plan meta-llama/Llama-3.1-70B --layers 16 --device-memory 80GB. " + EXIT_CODES)
@reporting
def plan(
    model: Model,
    layers: Annotated[int, typer.Option(min=1, help="how many layers to remove", show_default=False)],
    metric: Metric = "bi",
    span: Span = None,
    samples: Samples = 128,
    seqlen: Seqlen = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    disk: Disk = None,
    as_json: Json = False,
) -> None:
    """What a run would do: bytes, FLOPs, the bound that holds, memory in each tier. Loads no weights."""
    made = prunecomp.plan(
        model, layers, metric=metric, span=span, samples=samples, seqlen=seqlen, dtype=dtype.value, device=device,
        device_memory=parse_size("--device-memory", device_memory),
        host_memory=parse_size("--host-memory", host_memory), disk=disk,
    )  # fmt: skip
    if as_json:
        print_json(made.record())
        return
    console = Console()
    for table in plan_tables(made):
        console.print(table)
