"""What a pruning run gives back, and how it is saved."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from prunecomp.checkpoint.apply import apply_plan
from prunecomp.checkpoint.export import export, proved_fold
from prunecomp.checkpoint.fold import FoldPlan
from prunecomp.checkpoint.proof import LayerProof
from prunecomp.checkpoint.verify import Verification
from prunecomp.checkpoint.writer import DEFAULT_SHARD_BYTES
from prunecomp.data.windows import Windows
from prunecomp.engine.placement import Placement
from prunecomp.engine.progress import Progress, silent
from prunecomp.errors import OptionError
from prunecomp.io.escape import html_table, one_line
from prunecomp.io.values import flag, function, listed, whole
from prunecomp.model.source import ModelSource
from prunecomp.model.stack import LayerStack
from prunecomp.options import PruneOptions

SEAMS = "the model with its seams, before they are folded"


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


@dataclass(frozen=True, repr=False)
class ScoreResult:
    """One round without a removal."""

    metric: str
    scores: dict[int, float]
    scales: dict[int, float]
    calibration_digest: str
    layer_forwards: float
    seconds: float
    similarity: list[list[float]] | None = None
    """Mean cosine over all tokens of every pair of the L + 1 states of a token, from what enters the first layer to
    what leaves the last; there if blocks of layers were scored."""

    def __repr__(self) -> str:
        ranked = sorted(self.scores, key=lambda layer: (self.scores[layer], layer))
        return f"ScoreResult({self.metric}: of {len(ranked)} the first to go are {listed(ranked, 3)})"

    def _repr_html_(self) -> str:
        """The layers, the one to remove first on top, for a notebook."""
        ranked = sorted(self.scores, key=lambda layer: (self.scores[layer], layer))
        rows = [(layer, f"{self.scores[layer]:.5g}", f"{self.scales[layer]:.5g}") for layer in ranked]
        return html_table("The one to remove first on top", ("layer", self.metric, "scale"), rows)

    def record(self) -> dict[str, Any]:
        """The scores as plain data that JSON can hold."""
        return asdict(self)


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
    measured_on: str = SEAMS
    """What ``perplexity["pruned"]`` is of: from :meth:`save` on of the export, where it could be measured."""
    on_saved: Callable[[], None] | None = None
    """Called when a checkpoint is safely written: it ends the run's journal."""
    verified: Verification | None = None
    """What :meth:`save` read back of the checkpoint that it wrote last; None before, and where it was told not to."""
    _changed_in_place: bool = False

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
            "prunecomp": version("prunecomp"),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "transformers", "safetensors")},
            },
            "model": self.model_source.name,
            "num_layers": self.stack.num_layers,
            "options": asdict(self.options),
            "seed": self.options.seed,
            "calibration": {
                "source": self.calibration.source,
                "windows": self.calibration.count,
                "seqlen": self.calibration.seqlen,
                "bos": self.calibration.bos,
                "micro_batch": self.placement.micro_batch,
                "digest": self.calibration.digest,
            },
            "compiled": self.compiled,
            "streamed": self.placement.group_size is not None,
            "removed": self.removed,
            "scales": self.scales,
            "rounds": [asdict(r) for r in self.rounds],
            "layer_forwards": self.layer_forwards,
            "perplexity": self._perplexity_record(),
            "seconds": self.seconds,
            "verified": None if self.verified is None else asdict(self.verified),
        }

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
        }

    def prove(self) -> tuple[FoldPlan, list[LayerProof]]:
        """Plan the fold and prove it on every layer it changes; raises :class:`prunecomp.errors.FoldError`."""
        self._check_unchanged()
        return proved_fold(self.model_source, self.stack, self.options.fold, self.calibration.tokens[0])

    def save(
        self,
        path: str | Path,
        *,
        shard_bytes: int = DEFAULT_SHARD_BYTES,
        verify: bool = True,
        recipe: bool = False,
        command: str | None = None,
        progress: Progress = silent,
    ) -> Path:
        """Write an ordinary Hugging Face checkpoint to the new folder ``path``, whole or not at all.

        Weights are folded from the originals in float32 and keep the dtype they are stored in. With ``verify`` the
        files are read back before the folder gets its name: every tensor by its SHA-256, names and shapes against the
        written config, and logits on the first calibration windows, in float32, against the base as transformers loads
        it, with its layers removed and the seams in place. With
        ``recipe`` a ``mergekit.yml`` that makes the same weights is written beside them. ``command`` is what the model
        card says the export was made by; by default the call of :func:`prunecomp.prune`. Raises
        :class:`prunecomp.errors.FoldError` before anything is written, :class:`prunecomp.errors.OutputError` after.
        """
        out = Path(path)
        verify, recipe = flag("verify", verify), flag("recipe", recipe)
        function("progress", progress)
        shard_bytes = whole("shard_bytes", shard_bytes, 1, unit="bytes")
        self._check_unchanged()
        export(
            self, out, fold=self.options.fold, command=command or self._call(), shard_bytes=shard_bytes, verify=verify,
            recipe=recipe, progress=progress,
        )  # fmt: skip
        return out

    def _check_unchanged(self) -> None:
        if self._changed_in_place:
            raise OptionError("the model was changed in place by apply(); save the model itself instead")

    def _call(self) -> str:
        """The run as a call: what differs from the defaults of the options."""
        given = {
            f.name: getattr(self.options, f.name)
            for f in fields(self.options)
            if f.name != "layers" and getattr(self.options, f.name) != PruneOptions.__dataclass_fields__[f.name].default
        }
        arguments = [f"{name}={value!r}" for name, value in given.items() if value != []]
        parts = [repr(self.model_source.name), str(self.options.layers), repr(self.calibration.source), *arguments]
        return f"prunecomp.prune({', '.join(parts)})"

    def apply(self, model: nn.Module) -> None:
        """Fold, cut and renumber ``model`` in place; it must be the model that was pruned, or a copy of it."""
        plan, _ = self.prove()
        apply_plan(model, self.stack, plan)
        self._changed_in_place = model is self.model_source.load().model
