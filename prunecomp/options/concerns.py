"""The options, a class a concern: each is declared here, with its name, type, default, help and check.

A new option is a line in one of these classes, and its use. ``python -m tests.keywords`` then writes the functions'
keywords anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from prunecomp.engine.progress import Progress, silent
from prunecomp.errors import OptionError
from prunecomp.io.progress import told
from prunecomp.io.values import (
    device_name,
    dtype_name,
    function,
    gigabytes,
    layer_order,
    layer_set,
    probability,
    requested_backend,
    ridge,
    size,
    text,
    whole,
)
from prunecomp.names import (
    Attention,
    Backend,
    Bos,
    CompensationName,
    Compile,
    Dtype,
    Form,
    MetricName,
    Parity,
    RepairName,
    RunPreset,
)
from prunecomp.options.aims import Aim, aims
from prunecomp.options.declare import Options, option
from prunecomp.options.targets import Share, kept, stops

LARGEST_SEED = 2**64 - 1

RUN = "Run"
PANELS = (RUN, "Comparison", "Choice of layers", "Calibration", "Output", "Hardware and loading")
"""What help lists options under, what is wanted every day first."""

STEPS = "prune score pruner_for"
RUNS = f"{STEPS} collect compare"
ALL = f"{RUNS} evaluate profile"
EVERY = f"{ALL} plan"
LAYERS = "Iterable[int] | str"
SIZE = "int | str"

A = TypeVar("A", bound="Asking")


def tokenizer_of(option: str, value: Any) -> Any:
    if not callable(value):
        raise OptionError(f"tokenizer: give one of transformers, not {type(value).__name__}")
    return value


def progress_of(option: str, value: Any) -> Any:
    """What is told how far the work is."""
    if isinstance(value, bool):
        return told() if value else silent
    return function(option, value)


def anything(option: str, value: Any) -> Any:
    """What is read later, by those who know the model."""
    return value


@dataclass(frozen=True, kw_only=True)
class Data(Options):
    """What is calibrated on."""

    panel = "Calibration"

    calibration: Any = option(
        None, "text, .jsonl, .json or .parquet ('text' field), each also as .gz, .npy of token ids, - for stdin, "
        "'wikitext2' (the paper's protocol), or a dataset as NAME[:CONFIG[:SPLIT[:FIELD]]]",
        anything, of=RUNS, metavar="TEXT", panel=RUN, shown_default="the bundled mixture of four kinds of text",
    )  # fmt: skip
    samples: int = option(128, "calibration windows", partial(whole, least=1), of=f"{RUNS} plan", decides=True)
    seqlen: int | None = option(
        None, "tokens a window", partial(whole, least=2), of=EVERY, decides=True,
        shown_default="the smaller of 2048 and the model's context",
    )  # fmt: skip
    documents: bool = option(
        False, "each JSONL line or paragraph is a sample of its own, cut at --seqlen", of=RUNS, decides=True
    )
    seed: int = option(
        0,
        "seed of the choice of windows, and of probes",
        partial(whole, least=0, most=LARGEST_SEED),
        of=f"{RUNS} profile",
        decides=True,
    )
    bos: Bos = option(
        "auto", "each: every window begins with BOS; start: where the tokenizer puts it; auto: each where the "
        "tokenizer adds it by itself, but for the protocols by name", of=ALL, decides=True,
    )  # fmt: skip
    tokenizer: Any = option(None, "for text with a model in memory; a folder brings its own", tokenizer_of, of=ALL,
                            on="python")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Candidates(Options):
    """Which layers may go."""

    panel = "Choice of layers"

    keep: list[int] | Share = option(
        list, "layers that must stay, as in 0-3,31; or instead of --layers the share that stays, as in 80%", kept,
        of="prune compare plan", takes=LAYERS, metavar="LAYERS", decides=True,
    )  # fmt: skip
    candidates: list[int] | None = option(
        None, "layers that alone may go", layer_set, of="prune compare pruner_for", takes=f"{LAYERS} | None",
        metavar="LAYERS", decides=True,
    )  # fmt: skip
    given: list[int] = option(
        list, "with --metric given: the layers to remove, in order", layer_order, of="prune score compare",
        takes=LAYERS, metavar="LAYERS", decides=True,
    )  # fmt: skip
    parity: Parity | None = option(
        None, "official: score as the published code does where it departs from the paper",
        of="prune score compare", decides=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Choice(Options):
    """How layers are chosen and repaired."""

    panel = "Choice of layers"

    layers: int = option(
        1, "how many layers to remove; or give --layers-left, or a share as in --keep 80%", partial(whole, least=1),
        of="prune plan", panel=RUN, decides=True, shown_default="one of the three is required",
    )  # fmt: skip
    curve: list[int] | None = option(
        None, "several numbers of layers to stop at in one run, as in 1-10 or 2,4,6, each with its own repair; "
        "--layers takes them too", stops, of="prune", panel=RUN, takes="str", metavar="NUMBERS", decides=None,
        on="command line",
    )  # fmt: skip
    target: list[Aim] | None = option(
        None, "go as far as it lets: reach params=6.5B, size=12GB, layers=25 or latency=0.8x, or all named, and keep "
        "to perplexity=1.15x, agreement=0.8 or kl=0.2 on --eval, and to task:NAME=-5% by a probe", aims,
        of="prune plan", panel=RUN, takes="Sequence[str] | str | None", metavar="NAME=VALUE", decides=None,
    )  # fmt: skip
    layers_left: int | None = option(
        None, "how many layers stay, instead of --layers", partial(whole, least=1), of="prune plan", panel=RUN,
        decides=None,
    )  # fmt: skip
    metric: MetricName = option("bi", "what layers are scored by", text, of=f"{STEPS} plan", panel=RUN, decides=True)
    preset: RunPreset | None = option(
        None, "paper: Prune&Comp as published, --compensation scale and --repair none; other options win", of="prune",
        panel=RUN, decides=None,
    )  # fmt: skip
    compensation: CompensationName = option(
        "scale", "what stands in for a layer while others are chosen", text, of=STEPS, panel=RUN, decides=True,
        shown_default="scale, but none where a repair is fitted",
    )  # fmt: skip
    repair: RepairName = option(
        "none", "fitted to the dense model once all layers are chosen: refit (the down projection below each gap), "
        "joint (attention's output too), map (joint, then a map of the stream, folded into all layers above), or auto "
        "(judged on text left out of the fit, nothing included)",
        of="prune plan", panel=RUN, decides=True, shown_default="auto, but none where a compensation is named",
    )  # fmt: skip
    ridge: float | None = option(
        None, "how strongly a repair is drawn to the weights that are there, in units of the Gram matrix's mean "
        "diagonal", ridge, of="prune", takes="float | str | None", metavar="NUMBER", decides=True,
        shown_default="1",
    )  # fmt: skip
    span: int | None = option(
        None, "neighbours that go together, for bi, span and angular", partial(whole, least=1), of=f"{STEPS} plan",
        shown_default="all --layers in one block with span, else 1", decides=True,
    )  # fmt: skip
    one_shot: bool = option(False, "rank once instead of after each removal", of="prune", decides=True)
    lookahead: bool = option(
        False, "with --metric ppl: judge each candidate with its compensation in place", of="prune score", decides=True
    )
    confidence: float | None = option(
        None, "end a round as soon as its choice is settled at this confidence, as in 0.999; sequences are shuffled",
        probability, of="prune", decides=True,
    )  # fmt: skip
    fold: Form = option("up", "divide writers above the seams, or multiply those below", of="prune", decides=True)
    cache: bool = option(True, "keep states below a cut; without, all is run again", of="prune", on="python")


@dataclass(frozen=True, kw_only=True)
class Place(Options):
    """Where it runs, and as what."""

    panel = "Hardware and loading"

    dtype: Dtype = option(
        "auto", "compute dtype; auto: the checkpoint's, or float32 on a processor without 16-bit products; the export "
        "keeps the dtype of the checkpoint", dtype_name, of=EVERY,
        takes="Dtype | torch.dtype", decides=True,
    )  # fmt: skip
    device: str = option(
        "auto", "auto, cpu or cuda (cuda:1 for the second card)", device_name, of=EVERY, takes="str | torch.device",
        metavar="DEVICE", decides=True,
    )  # fmt: skip
    device_memory: int | None = option(
        None, "memory for weights, states and activations, as in 24GB; a model that does not fit is streamed layer by "
        "layer", size, of=EVERY, takes=f"{SIZE} | None", metavar="SIZE", shown_default="what is free less a tenth",
    )  # fmt: skip
    host_memory: int | None = option(
        None, "host memory for states behind a GPU", partial(size, least=0), of=EVERY, takes=f"{SIZE} | None",
        metavar="SIZE", shown_default="as above",
    )  # fmt: skip
    disk: Path | None = option(
        None, "folder for states that fit nowhere else", of=EVERY, takes="str | Path | None", metavar="FOLDER"
    )
    revision: str | None = option(
        None, "of a hub id: a branch, a tag or a commit; the same as ORG/NAME@REVISION", text, of=f"{EVERY} info",
        decides=None,
    )  # fmt: skip
    attn: Attention = option("auto", "attention implementation", of=ALL, decides=True)
    compile: Compile = option(
        "auto", "torch.compile of the layers; auto: where the work pays for it", of="prune score compare", decides=True
    )
    backend: Backend = option(
        partial(requested_backend, "backend"), "back end of the statistics", requested_backend, of=RUNS,
        takes="Backend | None", shown_default="$PRUNECOMP_BACKEND, else the best here", decides=True,
    )  # fmt: skip
    allow_pickle: bool = option(False, "read pytorch_model.bin where there is no safetensors", of=f"{ALL} info")
    progress: Progress = option(
        lambda: silent, "told how far the work is; True shows bars, or lines where there is no terminal", progress_of,
        of=ALL, on="python", takes="Progress | bool",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Output(Options):
    """What is written, and what is printed."""

    panel = "Output"

    out: Path = option(
        None, "new folder for what is written; of report the file, RUN/report.html by default",
        lambda option, value: Path(text(option, value)), of="prune compare report", required="prune compare",
        metavar="PATH", panel=RUN, on="command line", decides=None,
    )  # fmt: skip
    resume: bool = option(False, "go on with what an interrupted run has left", of="prune", panel=RUN, decides=None)
    journal: Path | None = option(
        None, "a file that takes each round as it ends; saving removes it", of="prune", takes="str | Path | None",
        on="python",
    )  # fmt: skip
    max_shard_size: float = option(5.0, "GB a file of the export", gigabytes, of="prune", on="command line")
    verify: bool = option(True, "read the export back before it gets its name", of="prune", on="command line")
    recipe: bool = option(False, "also write a mergekit.yml that makes the same weights", of="prune", on="command line")
    report: bool = option(
        True, "also write report.html, a page to look at", of="prune compare", on="command line", decides=None
    )
    backends: bool = option(
        False, "what runs the statistics here, and why", of="info", on="command line", panel=RUN, decides=None
    )
    force: bool = option(
        False, "replace the checkpoint that is in --out, once the new one is whole", of="prune", on="command line",
        decides=None,
    )  # fmt: skip
    json: bool = option(
        False, "print one JSON object on standard output, and nothing else there",
        of="prune score evaluate profile plan compare info", panel=RUN, on="command line", decides=None,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asking(Options):
    """What lm-eval is to ask."""

    panel = RUN

    tasks: str | None = option(
        None, "tasks of lm-eval by name or YAML file, with commas between; 'paper' for the paper's",
        text, of="prune evaluate profile compare", metavar="TASKS",
    )  # fmt: skip
    fewshot: int | None = option(
        None, "solved examples before each question of --tasks", partial(whole, least=0),
        of="prune evaluate profile compare", shown_default="as a task has it",
    )  # fmt: skip
    limit: int | None = option(
        None, "questions of each of --tasks", partial(whole, least=1), of="prune evaluate profile compare",
        shown_default="all",
    )  # fmt: skip

    @classmethod
    def of(cls: type[A], caller: str, given: Mapping[str, Any], on: str = "python") -> A:
        asked = super().of(caller, given, on)
        for name, number in (("--fewshot", asked.fewshot), ("--limit", asked.limit)):
            if number is not None and asked.tasks is None:
                raise OptionError(f"{name} {number}: there are no --tasks; name some, or leave it out")
        return asked


@dataclass(frozen=True, kw_only=True)
class Evaluation(Asking):
    """What perplexity is measured on, and what else is looked at."""

    panel = RUN

    eval: Any = option(
        None, "text to measure perplexity on, as for --calibration, or 'wikitext2-test'", anything,
        of="prune evaluate profile", metavar="TEXT",
    )  # fmt: skip
    profile: bool = option(False, "also what both models can do: chat prompts answered, probes", of="prune")
    base: Any = option(
        None, "the dense model that it was made from; of eval, for --tasks", anything, of="profile evaluate",
        metavar="MODEL",
    )  # fmt: skip
    items: int = option(50, "problems of each probe", partial(whole, least=10, most=10_000), of="prune profile")
