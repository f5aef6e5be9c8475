"""The keywords of the functions, typed for editors and type checkers; written from where they are declared.

``python -m tests.keywords`` writes this file. A metric or a compensation that another package adds has a name that is
in no ``Literal``: for it, ``typing.cast``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from prunecomp.engine.progress import Progress
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
    PresetName,
    RepairName,
    RunPreset,
)

if TYPE_CHECKING:
    import torch


class EvaluateKeywords(TypedDict, total=False):
    """Of :func:`prunecomp.evaluate`."""

    seqlen: int | None
    bos: Bos
    tokenizer: Any
    dtype: Dtype | torch.dtype
    device: str | torch.device
    device_memory: int | str | None
    host_memory: int | str | None
    disk: str | Path | None
    revision: str | None
    attn: Attention
    allow_pickle: bool
    progress: Progress | bool
    tasks: str | None
    fewshot: int | None
    limit: int | None
    base: Any


class ProfileKeywords(EvaluateKeywords, total=False):
    """Of :func:`prunecomp.profile`."""

    seed: int
    items: int


class CollectKeywords(TypedDict, total=False):
    """Of :func:`prunecomp.collect`."""

    samples: int
    seqlen: int | None
    documents: bool
    seed: int
    bos: Bos
    tokenizer: Any
    dtype: Dtype | torch.dtype
    device: str | torch.device
    device_memory: int | str | None
    host_memory: int | str | None
    disk: str | Path | None
    revision: str | None
    attn: Attention
    backend: Backend | None
    allow_pickle: bool
    progress: Progress | bool


class PrunerForKeywords(CollectKeywords, total=False):
    """Of :func:`prunecomp.pruner_for`."""

    metric: MetricName
    compensation: CompensationName
    span: int | None
    candidates: Iterable[int] | str | None


class ScoreKeywords(CollectKeywords, total=False):
    """Of :func:`prunecomp.score`."""

    metric: MetricName
    compensation: CompensationName
    span: int | None
    lookahead: bool
    given: Iterable[int] | str
    parity: Parity | None
    compile: Compile


class PruneKeywords(ScoreKeywords, total=False):
    """Of :func:`prunecomp.prune`."""

    target: Sequence[str] | str | None
    layers_left: int | None
    preset: RunPreset | None
    repair: RepairName
    ridge: float | str | None
    one_shot: bool
    confidence: float | None
    fold: Form
    cache: bool
    keep: Iterable[int] | str
    candidates: Iterable[int] | str | None
    tasks: str | None
    fewshot: int | None
    limit: int | None
    eval: Any
    profile: bool
    items: int
    resume: bool
    journal: str | Path | None


class PlanKeywords(TypedDict, total=False):
    """Of :func:`prunecomp.plan`."""

    target: Sequence[str] | str | None
    layers_left: int | None
    metric: MetricName
    repair: RepairName
    span: int | None
    keep: Iterable[int] | str
    samples: int
    seqlen: int | None
    dtype: Dtype | torch.dtype
    device: str | torch.device
    device_memory: int | str | None
    host_memory: int | str | None
    disk: str | Path | None
    revision: str | None


class CompareKeywords(CollectKeywords, total=False):
    """Of :func:`prunecomp.compare`."""

    keep: Iterable[int] | str
    candidates: Iterable[int] | str | None
    given: Iterable[int] | str
    parity: Parity | None
    compile: Compile
    tasks: str | None
    fewshot: int | None
    limit: int | None
    eval: Any
    metrics: Sequence[str] | str | None
    compensations: Sequence[str] | str | None
    repairs: Sequence[str] | str | None
    ridges: Sequence[float] | float | str | None
    one_shot: bool | Sequence[bool] | None
    both_ways: bool
    preset: PresetName | None
    arms: Any
    earlier: Any
    on_measured: Callable[[Any], None] | None
