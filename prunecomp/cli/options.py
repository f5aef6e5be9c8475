"""What the commands take: option types, and texts made into values."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated

import typer

from prunecomp.compensation import COMPENSATIONS
from prunecomp.errors import OptionError
from prunecomp.io.values import MOST_LAYERS, shown
from prunecomp.metrics import METRICS
from prunecomp.model.loader import ATTENTIONS
from prunecomp.ops.backends import BACKENDS
from prunecomp.options import LARGEST_SEED

EXIT_CODES = (
    "Exit codes: 0 done, 2 options, 3 model, 4 data, 5 non-finite values, 6 fold refused, 7 output, "
    "8 another process lost, 9 journal, 130 interrupted."
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
        help="text, .jsonl, .json or .parquet ('text' field), each also as .gz, .npy of token ids, - for stdin, "
        "'wikitext2' (the paper's protocol), or a dataset as "
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
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="seed of the choice of windows")]
Documents = Annotated[
    bool, typer.Option("--documents", help="each JSONL line or paragraph is a sample of its own, cut at --seqlen")
]
Bos = Annotated[
    str,
    typer.Option(
        help="each: every window begins with BOS; start: where the tokenizer puts it; auto: each where the tokenizer "
        "adds it by itself, but for the protocols by name"
    ),
]
DtypeOption = Annotated[Dtype, typer.Option(help="compute dtype; the export keeps the dtype of the checkpoint")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda (cuda:1 for the second card)")]
Metric = Annotated[str, typer.Option(help=f"score: {', '.join(METRICS)}")]
Compensation = Annotated[str, typer.Option(help=f"repair of a removal: {', '.join(COMPENSATIONS)}")]
Given = Annotated[
    str | None, typer.Option(help="with --metric given: the layers to remove, in order", show_default=False)
]
Span = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="neighbours that go together, for bi, span and angular [default: all --layers in one block with span, "
        "else 1]",
        show_default=False,
    ),
]
Lookahead = Annotated[
    bool, typer.Option("--lookahead", help="with --metric ppl: judge each candidate with its compensation in place")
]
Confidence = Annotated[
    float | None,
    typer.Option(
        help="end a round as soon as its choice is settled at this confidence, as in 0.999; sequences are shuffled",
        show_default=False,
    ),
]
Parity = Annotated[
    str | None,
    typer.Option(help="official: score as the published code does where it departs from the paper", show_default=False),
]
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
Disk = Annotated[str | None, typer.Option(help="folder for states that fit nowhere else", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output, and nothing else there")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="read pytorch_model.bin where there is no safetensors")
]


def parse_layers(option: str, text: str | None) -> list[int] | None:
    """``"0-3,7"`` to ``[0, 1, 2, 3, 7]``."""
    if text is None:
        return None
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?", part)
        if match is None:
            raise OptionError(f"{option} {shown(text)}: write layer numbers and ranges, as in 0-3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise OptionError(f"{option} {shown(text)}: {first}-{last} runs backwards; write {last}-{first}")
        layers.update(range(first, _bounded(option, text, last) + 1))
    return sorted(layers)


def parse_order(option: str, text: str | None) -> list[int]:
    """``"7,3,5"`` to ``[7, 3, 5]``."""
    if text is None:
        return []
    if re.fullmatch(r"\s*[0-9]{1,18}\s*(?:,\s*[0-9]{1,18}\s*)*", text) is None:
        raise OptionError(f"{option} {shown(text)}: write layer numbers in order, as in 7,3,5")
    return [_bounded(option, text, int(part)) for part in text.split(",")]


def _bounded(option: str, text: str, layer: int) -> int:
    if layer > MOST_LAYERS:
        raise OptionError(
            f"{option} {shown(text)}: no model has so many layers; write numbers that it has, as in 0-3,7"
        )
    return layer


UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(option: str, text: str | None) -> int | None:
    """``"24GB"`` to ``24_000_000_000``, ``"1.5GiB"`` to ``1_610_612_736``."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})\s*([KMGT]I?)?B?", text.strip().upper())
    if match is None:
        raise OptionError(f"{option} {shown(text)}: write bytes, or a number with a unit, as in 24GB or 500MiB")
    return int(float(match[1]) * UNITS[match[2] or ""])


def parse_shard_size(option: str, gigabytes: float) -> int:
    """A size in GB in bytes."""
    if not 1e-3 <= gigabytes <= 1e6:  # NaN lies nowhere
        raise OptionError(f"{option} {gigabytes}: give GB a file, from 0.001 to 1000000")
    return int(gigabytes * 1e9)
