"""The command that compares ways to prune."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

import prunecomp
from prunecomp.checkpoint.claim import claimed
from prunecomp.checkpoint.writer import check_output
from prunecomp.cli.options import (
    EXIT_CODES,
    AllowPickle,
    Attention,
    Backend,
    Bos,
    Compile,
    Device,
    DeviceMemory,
    Disk,
    Documents,
    Dtype,
    DtypeOption,
    Given,
    HostMemory,
    Json,
    Model,
    Parity,
    Seed,
    Seqlen,
    parse_layers,
    parse_order,
    parse_size,
)
from prunecomp.cli.shell import app, print_json, progress_on_stderr, reporting
from prunecomp.compare import PRESETS, Comparison
from prunecomp.compensation import COMPENSATIONS
from prunecomp.engine.parallel import from_leader, process_group
from prunecomp.engine.progress import silent
from prunecomp.errors import OptionError
from prunecomp.metrics import METRICS
from prunecomp.report.comparison import (
    INSTALLED,
    NEEDS_MATPLOTLIB,
    PARTIAL,
    RECORD,
    comparison_tables,
    load_record,
    save_plots,
    save_record,
    save_tables,
    saving,
)
from prunecomp.report.console import Console


def parse_names(option: str, text: str | None) -> list[str] | None:
    """``"bi,angular"`` to ``["bi", "angular"]``."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise OptionError(f"{option} {text}: write names with commas between them")
    return names


def earlier_results(held: ExitStack, out: Path, resume: bool) -> Comparison | None:
    """Have nobody else write to ``out``; what an interrupted comparison has left there. Raises :class:`OutputError`
    where something else is there."""
    held.enter_context(claimed(out))
    if resume:
        if (out / RECORD).is_file():
            return load_record(out)
        (out / PARTIAL).unlink(missing_ok=True)
    check_output(out)
    return None


def write_results(result: Comparison, out: Path) -> str | None:
    """Everything but the record, which is there; returns what could not be done."""
    save_record(result, out)
    save_tables(result, out)
    if not INSTALLED:
        return f"no plots: {NEEDS_MATPLOTLIB}"
    save_plots(result, out)
    return None


@app.command(
    epilog="Example: prunecomp compare examples/reference_model --layers 2,4,6 --calibration calibration.txt "
    "--metrics bi,magnitude --both-ways --eval evaluation.txt --out compared. " + EXIT_CODES
)
@reporting
def compare(
    model: Model,
    out: Annotated[Path, typer.Option(help="new folder for tables, plots and the record", show_default=False)],
    layers: Annotated[
        str | None,
        typer.Option(help="after how many removals to measure, as in 2,4,6 or 1-8", show_default=False),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="as for prune [default: the preset's]", show_default=False)
    ] = None,
    eval: Annotated[
        list[str] | None,
        typer.Option(
            help="text to measure perplexity on, as NAME=PATH or a source as for prune; repeat it for more. "
            "wikitext2-test, c4-validation and ptb-test follow the published protocols, with =PATH from a local file",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help=f"of {', '.join(METRICS)} [default: bi]", show_default=False)
    ] = None,
    compensations: Annotated[
        str | None, typer.Option(help=f"of {', '.join(COMPENSATIONS)} [default: none,scale]", show_default=False)
    ] = None,
    one_shot: Annotated[bool, typer.Option("--one-shot", help="rank once instead of after each removal")] = False,
    both_ways: Annotated[bool, typer.Option("--both-ways", help="one-shot and iterative")] = False,
    preset: Annotated[
        str | None,
        typer.Option(help=f"a published comparison: {', '.join(PRESETS)}; other options win", show_default=False),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="calibration windows [default: the preset's, or 128]", show_default=False),
    ] = None,
    seqlen: Seqlen = None,
    seed: Seed = 0,
    documents: Documents = False,
    bos: Bos = "auto",
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    keep: Annotated[str | None, typer.Option(help="layers that must stay, as in 0-3,31", show_default=False)] = None,
    candidates: Annotated[str | None, typer.Option(help="layers that alone may go", show_default=False)] = None,
    given: Given = None,
    parity: Parity = None,
    attn: Attention = "auto",
    compile: Compile = "auto",
    backend: Backend = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    disk: Disk = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="keep what an interrupted comparison has finished in --out")
    ] = False,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Prune in many ways, each with every metric and compensation named, and measure perplexity on the way.

    What several ways have in common is computed once. Nothing is exported.
    """
    if one_shot and both_ways:
        raise OptionError("--one-shot and --both-ways: give one of them")
    with process_group(device) as job, ExitStack() as held:
        # The first process alone looks and writes: others may be on machines that do not see the folder.
        earlier = from_leader(lambda: earlier_results(held, out, resume))
        result = prunecomp.compare(
            model, parse_layers("--layers", layers), calibration, eval=eval or None,
            metrics=parse_names("--metrics", metrics), compensations=parse_names("--compensations", compensations),
            one_shot=[False, True] if both_ways else [True] if one_shot else None, parity=parity, preset=preset,
            samples=samples, seqlen=seqlen, seed=seed, documents=documents,
            bos=bos, dtype=dtype.value, device=job.device,
            keep=parse_layers("--keep", keep) or [], candidates=parse_layers("--candidates", candidates),
            given=parse_order("--given", given), allow_pickle=allow_pickle, attn=attn, compile=compile,
            backend=backend, device_memory=parse_size("--device-memory", device_memory),
            host_memory=parse_size("--host-memory", host_memory), disk=disk, earlier=earlier,
            on_measured=(lambda so_far: save_record(so_far, out)) if job.leads else None,
            progress=progress_on_stderr() if job.leads else silent,
        )  # fmt: skip
        note = write_results(result, out) if job.leads else None
    if not job.leads:
        return
    if note is not None:
        Console(stderr=True).print(note, highlight=False)
    if as_json:
        print_json(result.record())
        return
    console = Console()
    for table in comparison_tables(result):
        console.print(table)
    console.print(saving(result), highlight=False)
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)
