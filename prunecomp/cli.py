"""The command line: parse, call, print."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

import prunecomp
from prunecomp.checkpoint.writer import DEFAULT_SHARD_BYTES, check_output
from prunecomp.compensation import COMPENSATIONS
from prunecomp.engine.parallel import from_leader, process_group
from prunecomp.engine.progress import Progress, silent
from prunecomp.errors import OptionError, PrunecompError
from prunecomp.journal import journal_path
from prunecomp.metrics import METRICS
from prunecomp.model.loader import ATTENTIONS
from prunecomp.ops.backends import BACKENDS, describe_backends
from prunecomp.report.progress import RichProgress
from prunecomp.report.tables import (
    backends_table,
    info_table,
    perplexity_table,
    plan_tables,
    rounds_table,
    scores_table,
)
from prunecomp.result import RECORD
from prunecomp.subject import describe

EXIT_CODES = (
    "Exit codes: 0 done, 2 options, 3 model, 4 data, 5 non-finite values, 6 fold refused, 7 output, "
    "8 another process lost, 9 journal, 130 interrupted."
)
app = typer.Typer(
    help="Prune layers from large language models and compensate for them without training (Prune&Comp).",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Fold(str, Enum):
    up = "up"
    down = "down"


Model = Annotated[str, typer.Argument(help="local checkpoint folder or hub id", show_default=False)]
Calibration = Annotated[
    str,
    typer.Option(
        help="text, .jsonl ('text' field), .npy of token ids, 'wikitext2' (the paper's protocol), or a dataset as "
        "NAME[:CONFIG[:SPLIT[:FIELD]]]",
        show_default=False,
    ),
]
Samples = Annotated[int, typer.Option(min=1, help="calibration windows")]
Seqlen = Annotated[
    int | None,
    typer.Option(
        min=2, help="tokens a window [default: the smaller of 2048 and the model's context]", show_default=False
    ),
]
Seed = Annotated[int, typer.Option(help="seed of the choice of windows")]
Documents = Annotated[
    bool, typer.Option("--documents", help="each JSONL line or paragraph is a sample of its own, cut at --seqlen")
]
DtypeOption = Annotated[Dtype, typer.Option(help="compute dtype; the export keeps the dtype of the checkpoint")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda (cuda:1 for the second card)")]
Metric = Annotated[str, typer.Option(help=f"score: {', '.join(METRICS)}")]
Compensation = Annotated[str, typer.Option(help=f"repair of a removal: {', '.join(COMPENSATIONS)}")]
Attention = Annotated[str, typer.Option(help=f"attention implementation: {', '.join(ATTENTIONS)}")]
Compile = Annotated[str, typer.Option(help="torch.compile of the layers: auto (where the work pays for it), on, off")]
Backend = Annotated[
    str | None,
    typer.Option(
        help=f"back end of the statistics: {', '.join(BACKENDS)} [default: $PRUNECOMP_BACKEND, else the best here]",
        show_default=False,
    ),
]
DeviceMemory = Annotated[
    str | None,
    typer.Option(
        help="memory for weights, states and activations, as in 24GB; a model that does not fit is streamed layer by "
        "layer [default: what is free less a tenth]",
        show_default=False,
    ),
]
HostMemory = Annotated[
    str | None, typer.Option(help="host memory for states behind a GPU [default: as above]", show_default=False)
]
Disk = Annotated[Path | None, typer.Option(help="folder for states that fit nowhere else", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output, and nothing else there")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="read pytorch_model.bin where there is no safetensors")
]


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Turn an error into its message and exit code."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        console = Console(stderr=True, soft_wrap=True)
        try:
            command(*args, **kwargs)
        except PrunecompError as error:
            # In one write: other processes of the job have something to say at the same moment.
            console.print(Text.assemble(("error:", "bold red"), f" {type(error).__name__}: {error}"))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            console.print("interrupted; no checkpoint was written. A prune goes on with the same command and --resume.")
            raise typer.Exit(130) from None

    return run


def progress_on_stderr() -> Progress:
    return RichProgress(Console(stderr=True))


def only_the_journal_is_left(out: Path) -> bool:
    """Whether a run was killed when its checkpoint was whole and its journal not yet removed."""
    return journal_path(out).is_file() and (out / RECORD).is_file()


def report_written(out: Path, as_json: bool) -> None:
    journal_path(out).unlink()
    if as_json:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        print_json({key: value for key, value in record.items() if key != "fold_proofs"})
    else:
        Console(soft_wrap=True).print(f"{out} was whole when the run was killed: nothing is left to do")


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def parse_layers(option: str, text: str | None) -> list[int] | None:
    """``"0-3,7"`` to ``[0, 1, 2, 3, 7]``."""
    if text is None:
        return None
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            layers.update(range(int(first), int(last if dash else first) + 1))
        except ValueError:
            raise OptionError(f"{option} {text}: write layer numbers and ranges, as in 0-3,7") from None
    return sorted(layers)


def parse_order(option: str, text: str | None) -> list[int]:
    """``"7,3,5"`` to ``[7, 3, 5]``."""
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"{option} {text}: write layer numbers in order, as in 7,3,5") from None


UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(option: str, text: str | None) -> int | None:
    """``"24GB"`` to ``24_000_000_000``, ``"1.5GiB"`` to ``1_610_612_736``."""
    if text is None:
        return None
    match = re.fullmatch(r"([\d.]+)\s*([KMGT]?I?)B?", text.strip().upper())
    try:
        assert match is not None
        return int(float(match[1]) * UNITS[match[2]])
    except (AssertionError, KeyError, ValueError):
        raise OptionError(f"{option} {text}: write bytes, or a number with a unit, as in 24GB or 500MiB") from None


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
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    metric: Metric = "bi",
    compensation: Compensation = "scale",
    one_shot: Annotated[bool, typer.Option("--one-shot", help="rank once instead of after each removal")] = False,
    keep: Annotated[str | None, typer.Option(help="layers that must stay, as in 0-3,31", show_default=False)] = None,
    candidates: Annotated[str | None, typer.Option(help="layers that alone may go", show_default=False)] = None,
    given: Annotated[
        str | None, typer.Option(help="with --metric given: the layers to remove, in order", show_default=False)
    ] = None,
    fold: Annotated[Fold, typer.Option(help="divide writers above the seams, or multiply those below")] = Fold.up,
    eval: Annotated[str | None, typer.Option(help="text to measure perplexity on", show_default=False)] = None,
    max_shard_size: Annotated[float, typer.Option(min=0.001, help="GB a file of the export")] = DEFAULT_SHARD_BYTES
    / 1e9,
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
    with process_group(device) as job:
        # The first process alone looks and writes: others may be on machines that do not see the folder.
        if from_leader(lambda: resume and only_the_journal_is_left(out)):
            if job.leads:
                report_written(out, as_json)
            return
        from_leader(lambda: check_output(out))
        progress = progress_on_stderr() if job.leads else silent
        result = prunecomp.prune(
            model, layers, calibration, samples=samples, seqlen=seqlen, seed=seed, documents=documents,
            dtype=dtype.value, device=job.device, metric=metric, compensation=compensation, one_shot=one_shot,
            keep=parse_layers("--keep", keep) or [], candidates=parse_layers("--candidates", candidates),
            given=parse_order("--given", given), fold=fold.value, eval=eval, allow_pickle=allow_pickle, attn=attn,
            compile=compile, backend=backend,
            device_memory=parse_size("--device-memory", device_memory),
            host_memory=parse_size("--host-memory", host_memory), disk=disk, journal=journal_path(out), resume=resume,
            progress=progress,
        )  # fmt: skip
        if job.leads:
            result.save(out, shard_bytes=int(max_shard_size * 1e9), progress=progress)
    if not job.leads:
        return
    if as_json:
        print_json(result.record())
        return
    console = Console()
    console.print(rounds_table(result))
    table = perplexity_table(result)
    if table is not None:
        console.print(table)
    console.print(f"{result.layer_forwards} layer-forwards, {result.seconds:.1f} s; wrote {out}", highlight=False)


@app.command(epilog="Example: prunecomp score examples/reference_model --calibration calibration.txt. " + EXIT_CODES)
@reporting
def score(
    model: Model,
    calibration: Calibration,
    samples: Samples = 128,
    seqlen: Seqlen = None,
    seed: Seed = 0,
    documents: Documents = False,
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    metric: Metric = "bi",
    compensation: Compensation = "scale",
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
            model, calibration, samples=samples, seqlen=seqlen, seed=seed, documents=documents, dtype=dtype.value,
            device=job.device, metric=metric, compensation=compensation, allow_pickle=allow_pickle, attn=attn,
            compile=compile, backend=backend, device_memory=parse_size("--device-memory", device_memory),
            host_memory=parse_size("--host-memory", host_memory), disk=disk,
            progress=progress_on_stderr() if job.leads else silent,
        )  # fmt: skip
    if not job.leads:
        return
    if as_json:
        print_json(result.record())
    else:
        Console().print(scores_table(result))


@app.command(name="eval", epilog="Example: prunecomp eval pruned --eval evaluation.txt. " + EXIT_CODES)
@reporting
def evaluate(
    model: Model,
    eval: Annotated[str, typer.Option(help="text, .jsonl, .npy, 'wikitext2-test' or a dataset", show_default=False)],
    seqlen: Seqlen = None,
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
            model, eval, seqlen=seqlen, dtype=dtype.value, device=job.device, allow_pickle=allow_pickle, attn=attn,
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
        model, layers, samples=samples, seqlen=seqlen, dtype=dtype.value, device=device,
        device_memory=parse_size("--device-memory", device_memory),
        host_memory=parse_size("--host-memory", host_memory), disk=disk,
    )  # fmt: skip
    if as_json:
        print_json(made.record())
        return
    console = Console()
    for table in plan_tables(made):
        console.print(table)


def main() -> None:
    app(prog_name="prunecomp")


if __name__ == "__main__":
    main()
