"""The command line: parse, call, print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import prunecomp
from prunecomp.checkpoint.writer import DEFAULT_SHARD_BYTES, check_output
from prunecomp.compensation import COMPENSATIONS
from prunecomp.engine.progress import Progress
from prunecomp.errors import OptionError, PrunecompError
from prunecomp.metrics import METRICS
from prunecomp.report.progress import RichProgress
from prunecomp.report.tables import info_table, perplexity_table, rounds_table, scores_table
from prunecomp.subject import describe

EXIT_CODES = (
    "Exit codes: 0 done, 2 options, 3 model, 4 data, 5 non-finite values, 6 fold refused, 7 output, 130 interrupted."
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
DtypeOption = Annotated[Dtype, typer.Option(help="compute dtype; the export keeps the dtype of the checkpoint")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda (cuda:1 for the second card)")]
Metric = Annotated[str, typer.Option(help=f"score: {', '.join(METRICS)}")]
Compensation = Annotated[str, typer.Option(help=f"repair of a removal: {', '.join(COMPENSATIONS)}")]
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
            console.print(f"[bold red]error:[/] {type(error).__name__}: ", end="")
            console.print(str(error), markup=False, highlight=False)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            console.print("interrupted; nothing was written")
            raise typer.Exit(130) from None

    return run


def progress_on_stderr() -> Progress:
    return RichProgress(Console(stderr=True))


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
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    metric: Metric = "bi",
    compensation: Compensation = "scale",
    one_shot: Annotated[bool, typer.Option("--one-shot", help="rank once instead of after each removal")] = False,
    keep: Annotated[str | None, typer.Option(help="layers that must stay, as in 0-3,31", show_default=False)] = None,
    candidates: Annotated[str | None, typer.Option(help="layers that alone may go", show_default=False)] = None,
    fold: Annotated[Fold, typer.Option(help="divide writers above the seams, or multiply those below")] = Fold.up,
    eval: Annotated[str | None, typer.Option(help="text to measure perplexity on", show_default=False)] = None,
    max_shard_size: Annotated[float, typer.Option(min=0.001, help="GB a file of the export")] = DEFAULT_SHARD_BYTES
    / 1e9,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Remove layers, compensate, and write an ordinary Hugging Face checkpoint."""
    check_output(out)
    progress = progress_on_stderr()
    result = prunecomp.prune(
        model, layers, calibration, samples=samples, seqlen=seqlen, seed=seed, dtype=dtype.value, device=device,
        metric=metric, compensation=compensation, one_shot=one_shot, keep=parse_layers("--keep", keep) or [],
        candidates=parse_layers("--candidates", candidates), fold=fold.value, eval=eval, allow_pickle=allow_pickle,
        progress=progress,
    )  # fmt: skip
    result.save(out, shard_bytes=int(max_shard_size * 1e9), progress=progress)
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
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    metric: Metric = "bi",
    compensation: Compensation = "scale",
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Score every layer once, and change nothing."""
    result = prunecomp.score(
        model, calibration, samples=samples, seqlen=seqlen, seed=seed, dtype=dtype.value, device=device,
        metric=metric, compensation=compensation, allow_pickle=allow_pickle, progress=progress_on_stderr(),
    )  # fmt: skip
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
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Perplexity over non-overlapping windows, each standing alone; a remainder is dropped."""
    value = prunecomp.evaluate(
        model, eval, seqlen=seqlen, dtype=dtype.value, device=device, allow_pickle=allow_pickle,
        progress=progress_on_stderr(),
    )  # fmt: skip
    if as_json:
        print_json({"model": model, "eval": eval, "perplexity": value})
    else:
        Console().print(f"perplexity {value:.3f}", highlight=False)


@app.command(epilog="Example: prunecomp info examples/reference_model --json. " + EXIT_CODES)
@reporting
def info(model: Model, allow_pickle: AllowPickle = False, as_json: Json = False) -> None:
    """What the adapter sees: layers, writers, readers, tied or not. Loads no weights."""
    seen = describe(model, allow_pickle=allow_pickle)
    if as_json:
        print_json(seen)
    else:
        Console().print(info_table(seen))


def main() -> None:
    app(prog_name="prunecomp")


if __name__ == "__main__":
    main()
