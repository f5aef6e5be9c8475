"""What a pruning run gives back, and how it is saved."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from prunecomp.checkpoint.apply import apply_plan
from prunecomp.checkpoint.export import export, proved_fold
from prunecomp.checkpoint.fold import FoldPlan, plan_fold
from prunecomp.checkpoint.proof import LayerProof
from prunecomp.checkpoint.verify import Verification
from prunecomp.checkpoint.writer import DEFAULT_SHARD_BYTES
from prunecomp.data.windows import Windows
from prunecomp.engine.latency import Latency
from prunecomp.engine.parallel import world_size
from prunecomp.engine.placement import Placement, available_memory, memory_used, place
from prunecomp.engine.progress import Progress, silent
from prunecomp.engine.usual import usual
from prunecomp.errors import OptionError
from prunecomp.evaluation.agreement import TextQuality
from prunecomp.evaluation.perplexity import perplexity
from prunecomp.evaluation.profile import Profile
from prunecomp.io.escape import html_table, one_line
from prunecomp.io.values import flag, listed, whole
from prunecomp.model.loader import load_decoder
from prunecomp.model.source import ModelSource
from prunecomp.model.stack import LayerStack
from prunecomp.model.unwrap import unwrapped
from prunecomp.names import ATTENTIONS, VERSION
from prunecomp.options import PruneOptions
from prunecomp.options.concerns import progress_of
from prunecomp.repair import Outcome

FORMAT = 1
"""Of the record: it rises when a field goes or changes its meaning (``docs/reference/formats.md``)."""
SEAMS, EXPORT = "the model with its seams, before they are folded", "the export"


def versions() -> dict[str, str]:
    """Of Python and of what a run's numbers may depend on beside us."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "safetensors")},
    }


@dataclass(frozen=True)
class Origin:
    """Where a pruner's model and windows come from, for a :class:`PruneResult`."""

    model_source: ModelSource
    options: PruneOptions
    calibration: Windows


@dataclass(frozen=True)
class RoundRecord:
    """One removal: ``scores`` by original layer index, as they were when it was decided."""

    layer: int
    score: float | None
    """None where the caller chose without having scored."""
    scale: float
    scores: dict[int, float]
    layer_forwards: float
    """A whole number but where an early stop left sequences out."""
    zero_rows: int
    dead_channels: int
    seconds: float
    block: list[int]
    """All layers that went, from below; ``layer`` is the first of them."""
    sequences: int
    """Calibration sequences that the decision rests on."""
    chosen: str | None = None
    """Which compensation was taken, by one that chooses."""
    losses: dict[str, float] = field(default_factory=dict)
    """What it compared: nats a token on windows that no statistic saw."""
    probability: float | None = None
    """That the chosen score is the lowest of the candidates', by a bootstrap over the calibration sequences; None where
    scores are no means over sequences."""
    runner_up: int | None = None
    """The candidate with the next score, if there is one."""
    margin: float | None = None
    """By how much it is higher."""
    margin_interval: list[float] = field(default_factory=list)
    """Where that lies with a probability of 95 %: from, to."""


@dataclass(frozen=True)
class Pass:
    """What stages of one kind did that run layers over windows."""

    seconds: float
    layer_forwards: float
    """Passes of all windows through one layer."""
    tokens_per_second: float
    """Through as many layers as the dense model has, with all that is taken on the way."""


@dataclass(frozen=True)
class Gate:
    """A model on the way to a target."""

    layers: int
    """That are gone."""
    seen: dict[str, float]
    """By the names of a target: what it has. Perplexity and latency are ratios to the dense model's, and what stands
    for a ``task:`` is how much more it solves than that: -0.05 is 5 % less."""
    missed: list[str]
    """Of the target: goals not reached yet, limits broken."""


@dataclass(frozen=True)
class TargetRecord:
    """How a run came to stop where it did."""

    asked: list[str]
    gates: list[Gate]
    """One a round; the last may be of a model that is not taken."""
    dense: dict[str, float] = field(default_factory=dict)
    """What the dense model solves of the problems of each ``task:``, a share."""
    latency: Latency | None = None
    """What its layers took, where that was to be reached."""


@dataclass(repr=False)
class PruneResult:
    """The outcome of :func:`prunecomp.prune`, over weights that are still as they were."""

    options: PruneOptions
    model_source: ModelSource
    stack: LayerStack
    rounds: list[RoundRecord]
    calibration: Windows
    evaluation: Windows | None
    placement: Placement
    compiled: bool
    layer_forwards: float
    perplexity: dict[str, float] | None
    seconds: float
    quality: Sequence[TextQuality] = ()
    """Of the dense model and of the one with its seams, on the evaluation text."""
    profile: Profile | None = None
    """What both can do, where that was asked for."""
    repair: Outcome | None = None
    """What was fitted once all layers were chosen; the seams and weights it put in place are in ``stack``."""
    target: TargetRecord | None = None
    """What was to be reached or kept to, instead of a number of layers."""
    measured_on: str = SEAMS
    """What ``perplexity["pruned"]`` is of: from :meth:`save` on of the export, where it could be measured."""
    stages: dict[str, float] = field(default_factory=dict)
    """Of ``seconds`` those that each part of the work took; from :meth:`save` on those of the export too."""
    passes: dict[str, Pass] = field(default_factory=dict)
    """How fast layers ran: as they were scored, repaired, and in the evaluation of either model."""
    exported: dict[str, Any] = field(default_factory=dict)
    """What :meth:`save` learnt of the checkpoint that it wrote last: ``size`` and ``command``, as they are recorded."""
    on_saved: Callable[[], None] | None = None
    """Called when a checkpoint is safely written: it ends the run's journal."""
    verified: Verification | None = None
    """What :meth:`save` read back of the checkpoint that it wrote last; None before, and where it was told not to."""
    _put_back: Callable[[], None] | None = None
    """What makes the model that was pruned what it was, where it was changed in place."""

    def __repr__(self) -> str:
        return f"PruneResult({self._summary()}, scales {listed([f'{scale:.4g}' for scale in self.scales])})"

    def _summary(self) -> str:
        """Model, layers gone, perplexities."""
        gone = f"layers {listed(self.removed)} of {self.stack.num_layers} gone"
        if self.perplexity is None:
            return f"{one_line(self.model_source.name)}: {gone}"
        dense, pruned = (f"{self.perplexity[name]:.4g}" for name in ("dense", "pruned"))
        return f"{one_line(self.model_source.name)}: {gone}, perplexity {dense} -> {pruned}"

    def _repr_html_(self) -> str:
        """The rounds, for a notebook."""
        rows = [
            (number, listed(r.block), "" if r.score is None else f"{r.score:.5g}", f"{r.scale:.5g}")
            for number, r in enumerate(self.rounds, start=1)
        ]
        return html_table(self._summary(), ("round", "layers", self.options.metric, "scale"), rows)

    @property
    def removed(self) -> list[int]:
        """Original indices of the removed layers, in the order of their removal."""
        return [layer for r in self.rounds for layer in r.block]

    @property
    def scales(self) -> list[float]:
        """The scale each round left behind, in the same order."""
        return [r.scale for r in self.rounds]

    def record(self) -> dict[str, Any]:
        """The run as plain data, as ``prunecomp.json`` holds it."""
        return {
            "format": FORMAT,
            "prunecomp": VERSION,
            "versions": versions(),
            "model": self.model_source.name,
            "num_layers": self.stack.num_layers,
            "options": self.options.record(),
            "run": self.options.beside(),
            "seed": self.options.seed,
            "calibration": {
                "source": self.calibration.source,
                "windows": self.calibration.count,
                "seqlen": self.calibration.seqlen,
                "bos": self.calibration.bos,
                "micro_batch": self.placement.micro_batch,
                "digest": self.calibration.digest,
                "sources": self.calibration.by_source(),
            },
            "dtype": str(self.model_source.dtype).removeprefix("torch."),
            "compiled": self.compiled,
            "streamed": self.placement.group_size is not None,
            "removed": self.removed,
            "layer_map": list(self.stack.alive),
            "scales": self.scales,
            "rounds": [asdict(r) for r in self.rounds],
            "repair": None if self.repair is None else asdict(self.repair),
            "target": None if self.target is None else asdict(self.target),
            "layer_forwards": self.layer_forwards,
            "perplexity": self._perplexity_record(),
            "profile": None if self.profile is None else self.profile.record(),
            "seconds": self.seconds,
            "cost": self._cost(),
            **self.exported,
            "verified": None if self.verified is None else asdict(self.verified),
        }

    @property
    def may_take_more(self) -> bool:
        """Whether the device is this run's without a limit, and held its whole model."""
        return self.options.device_memory is None and self.placement.group_size is None

    def _cost(self) -> dict[str, Any]:
        used, of = memory_used(self.model_source.device)
        planned = {tier.value: nbytes for tier, nbytes in self.placement.peak_nbytes.items()}
        passes = {name: asdict(one) for name, one in self.passes.items()}
        return {"seconds": dict(self.stages), "passes": passes, "memory": {"planned": planned, "used": used, "of": of}}

    def _perplexity_record(self) -> dict[str, Any] | None:
        if self.perplexity is None or self.evaluation is None:
            return None
        return {
            **self.perplexity,
            "measured_on": self.measured_on,
            "source": self.evaluation.source,
            "windows": self.evaluation.count,
            "seqlen": self.evaluation.seqlen,
            "bos": self.evaluation.bos,
            **({} if not self.quality else {
                "standard_error": {
                    name: one.perplexity.standard_error
                    for name, one in zip(("dense", "pruned"), self.quality, strict=True)
                },
                "tokens": self.quality[0].tokens,
                "agreement": self.quality[1].record()["agreement"],
            }),
        }  # fmt: skip

    @usual()
    def prove(self) -> tuple[FoldPlan, list[LayerProof]]:
        """Plan the fold and prove it on every layer it changes; raises :class:`prunecomp.errors.FoldError`."""
        with self._dense():
            return proved_fold(self.model_source, self.stack, self.options.fold, self.calibration.tokens[0])

    @usual()
    def save(
        self,
        path: str | Path,
        *,
        shard_bytes: int = DEFAULT_SHARD_BYTES,
        verify: bool = True,
        recipe: bool = False,
        overwrite: bool = False,
        command: str | None = None,
        progress: Progress | bool = silent,
    ) -> Path:
        """Write an ordinary Hugging Face checkpoint to the new folder ``path``, whole or not at all. With ``overwrite``
        it takes the place of a checkpoint that is there, once it is whole.

        Weights are folded from the originals in float32 and keep the dtype they are stored in. With ``verify`` the
        files are read back before the folder gets its name: every tensor by its SHA-256, names and shapes against the
        written config, and logits on the first calibration windows, in float32, against the base as transformers loads
        it, with its layers removed and the seams in place. With
        ``recipe`` a ``mergekit.yml`` that makes the same weights is written beside them. ``command`` is what the model
        card says the export was made by; by default the call of :func:`prunecomp.prune`. Raises
        :class:`prunecomp.errors.FoldError` before anything is written, :class:`prunecomp.errors.OutputError` after.
        """
        out = Path(path)
        verify, recipe, overwrite = flag("verify", verify), flag("recipe", recipe), flag("overwrite", overwrite)
        tell: Progress = progress_of("progress", progress)
        shard_bytes = whole("shard_bytes", shard_bytes, 1, unit="bytes")
        self.options = replace(self.options, max_shard_size=shard_bytes / 1e9, verify=verify, recipe=recipe)
        with self._dense():
            export(
                self, out, fold=self.options.fold, command=command or self._call(), shard_bytes=shard_bytes,
                verify=verify, recipe=recipe, overwrite=overwrite, progress=tell,
            )  # fmt: skip
        return out

    def measure(self, folder: Path, progress: Progress = silent) -> None:
        """Perplexity of the export in ``folder``, in the place of that of the seam model: a fold rounds. Left as it is,
        and called what it is, where the other processes of a job do not take part, or memory holds no second model."""
        if self.perplexity is None or self.evaluation is None or world_size() > 1:
            return
        source, placement, windows = self.model_source, self.placement, self.evaluation
        attention = str(source.load().config._attn_implementation)
        if source.resident:
            memory = available_memory(source.device)
            try:
                placement = place(source.shape(), windows.count, windows.seqlen, memory, source.device)
            except OptionError:
                return
        source.release()
        exported = load_decoder(
            folder, dtype=str(source.dtype).removeprefix("torch."), device=str(source.device),
            group_size=placement.group_size, attention=attention if attention in ATTENTIONS else "auto",
        )  # fmt: skip
        measured = perplexity(exported, LayerStack.dense(exported.num_layers), windows, placement, progress)
        self.perplexity, self.measured_on = {**self.perplexity, "pruned": measured}, EXPORT

    def take_measured(self, record: Mapping[str, Any]) -> None:
        """Take from the ``record`` of this run's export what :meth:`measure` would find of it."""
        measured = record.get("perplexity")
        if self.perplexity is not None and isinstance(measured, dict):
            self.perplexity = {**self.perplexity, "pruned": measured["pruned"]}
            self.measured_on = measured["measured_on"]

    def _call(self) -> str:
        """The run as a call: what differs from the defaults of the options."""
        usual = {each.name: each.default for each in PruneOptions.options()}
        given = {n: value for n, value in self.options.record().items() if n != "layers" and value != usual[n]}
        arguments = [f"{name}={value!r}" for name, value in given.items() if value != []]
        parts = [repr(self.model_source.name), str(self.options.layers), repr(self.calibration.source), *arguments]
        return f"prunecomp.prune({', '.join(parts)})"

    @usual()
    def apply(self, model: nn.Module) -> None:
        """Fold, cut and renumber ``model`` in place; it must be the model that was pruned, or a copy of it.

        Its config follows, and no longer names the dense model as where it comes from. A model that was pruned where it
        is can still be saved from this result, which keeps what was taken out of it until it is gone itself.
        """
        plan, _ = self.prove()
        own = unwrapped(model) is self.model_source.load().model
        if own and self._put_back is not None:
            raise OptionError("apply: the model has been pruned in place already; give another copy of the dense one")
        put_back = apply_plan(model, self.stack, plan)
        if own:
            self._put_back = put_back

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within, ``model`` is the pruned one, as :meth:`apply` makes it; afterwards it is what it was, bit for bit.

        >>> with result.applied(model):
        ...     model.generate(...)
        """
        plan, _ = self.prove()
        put_back = apply_plan(model, self.stack, plan)
        own = unwrapped(model) is self.model_source.load().model
        if own:
            self._put_back = put_back
        try:
            yield model
        finally:
            if own and self._put_back is not None:  # another one, where the dense model was looked at meanwhile
                put_back, self._put_back = self._put_back, None
            put_back()

    @contextmanager
    def _dense(self) -> Iterator[None]:
        """The model that was pruned as it was, for as long as it is looked at."""
        self.model_source.check_unchanged()
        put_back, self._put_back = self._put_back, None
        if put_back is None:
            yield
            return
        put_back()
        try:
            yield
        finally:
            plan = plan_fold(self.model_source.load(), self.stack, self.options.fold)
            self._put_back = apply_plan(self.model_source.load().model, self.stack, plan)
