"""The repair once all layers are chosen: the writers below each gap are fitted to what used to leave it.

One fit for each run of neighbouring layers that went, from below, each on the stream as it has been repaired so far,
with the dense model's stream above the gap as what is wanted. No parameter is added and nothing is paid at run time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch

from prunecomp.data.windows import Batch, Windows
from prunecomp.engine.parallel import total
from prunecomp.engine.placement import Demand, ModelShape, Placement
from prunecomp.engine.progress import Advance, Progress, silent
from prunecomp.engine.regression import (
    NormalEquations,
    Watched,
    repair_demand,
    side_by_side,
    sums_dtype,
    token_rows,
    weight,
)
from prunecomp.engine.run import WORK_UNIT
from prunecomp.engine.streams import BOUNDARIES, Streams
from prunecomp.io.values import runs
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.repair.writers import Writer, attention_writer, changed, mlp_writer, overlaid, standing

RIDGE = 1.0
"""In units of the mean diagonal of the Gram matrix. Lighter ones look as good on the kinds of text that were calibrated
on, and lose a tenth to a quarter on others."""

NORM_PASSES = 2
"""Fixed-point passes of a fit behind a norm, whose root mean square depends on the fitted matrix."""

GAIN_RIDGE = 0.1
"""Of the fit of that norm's gain, in units of each channel's own mean square."""


@dataclass(frozen=True)
class Gap:
    """Neighbouring layers that went, by original index."""

    layers: tuple[int, ...]

    @property
    def below(self) -> int:
        """The layer below; -1 where there is none."""
        return self.layers[0] - 1

    @property
    def above(self) -> int:
        """The layer above; the number of layers where there is none."""
        return self.layers[-1] + 1


@dataclass(frozen=True)
class GapRecord:
    """What was done about one gap."""

    layers: list[int]
    fitted: list[str]
    """Names of the tensors that were fitted, within the layer below; none where a scalar is all that fits there."""
    scale: float
    """The seam in its place."""
    ridge: float
    error_before: float
    """``|z - a y| / |z|`` over all calibration tokens, each over its own size: the scalar alone."""
    error_after: float
    """The same once fitted. In sample, at the seam: no judge of what the model lost."""
    condition: float | None = None
    """Condition number of all maps up to this gap; None where there is none."""


@dataclass(frozen=True)
class Repaired:
    """A repaired stack, and how it came about."""

    stack: LayerStack
    gaps: list[GapRecord]
    window_forwards: int
    """Passes of one window through one layer."""
    seconds: float


def gaps_of(stack: LayerStack) -> list[Gap]:
    """Runs of neighbouring layers that are gone, from below."""
    return [Gap(tuple(run)) for run in runs(stack.removed)]


def bare(stack: LayerStack) -> LayerStack:
    """The same survivors with nothing put in place of what went."""
    return LayerStack(stack.num_layers, stack.alive, (1.0,) * len(stack.alive))


def refit(
    decoder: Decoder,
    windows: Windows,
    placement: Placement,
    stack: LayerStack,
    *,
    joint: bool = False,
    ridge: float = RIDGE,
    fitted: bool = True,
    progress: Progress = silent,
) -> Repaired:
    """Fit the gaps of ``stack`` to the dense model on ``windows``; what stands in its seams and overlays is left out.

    For a gap: y the stream below it, z the dense model's above it, h the input of the down projection below, ``w = 1 /
    rms(z)`` a token. The seam is ``a = sum w^2 <y, z> / sum w^2 <y, y>``; the down projection
    takes up ``D = (G + ridge mean(diag G) I)^-1 sum w^2 h (z / a - y)^T`` with ``G = sum w^2 h h^T``. With ``joint``
    one solve for attention's output and down projection side by side sets the former, the layer runs again, and the
    latter is fitted alone; where attention cannot take part, it is left out. Without ``fitted`` the scalars are all.

    Behind a post-norm the features are ``h / rms(m)``, m what the down projection gives, the target is over the norm's
    gain, and its gain is fitted last; no scalar there. Nothing lies below a gap that starts at layer 0, and a layer of
    routed experts alone has no such matrix: they take the scalar.

    With several processes each passes its share of the windows, and all come to the same bits.
    """
    return Fit(decoder, windows, placement, bare(stack), joint=joint, ridge=ridge, fitted=fitted).run(progress)


def fit_demand(decoder: Decoder, shape: ModelShape, joint: bool) -> Demand:
    """What :func:`refit` takes; the model may be on the meta device."""
    widths = []
    for layer in range(decoder.num_layers):
        some = [mlp_writer(decoder, layer), attention_writer(decoder, layer) if joint else None]
        widths.append(sum(writer.width(decoder.layers[layer]) for writer in some if writer is not None))
    return repair_demand(max(widths), shape.hidden_size, max(0, BOUNDARIES - (shape.num_layers - 1)))


class Fit:
    """The walk from gap to gap."""

    def __init__(
        self,
        decoder: Decoder,
        windows: Windows,
        placement: Placement,
        stack: LayerStack,
        *,
        joint: bool,
        ridge: float,
        fitted: bool = True,
    ) -> None:
        self.decoder = decoder
        self.windows, self.joint, self.ridge, self.fitted = windows, joint, ridge, fitted
        self.scalar = decoder.family.mlp_norm is None
        self.streams = Streams(decoder, windows, placement, stack)

    def run(self, progress: Progress) -> Repaired:
        """Close all gaps, from below."""
        started = time.perf_counter()
        with self.decoder.evaluating(), progress("repairing", self.work, WORK_UNIT) as advance:
            records = [self.close(gap, advance) for gap in gaps_of(self.streams.pruned.stack)]
            self.finish()
        sweeper, count = self.streams.sweeper, self.windows.count
        spent = sweeper.tally.window_forwards * count // sweeper.windows.count  # of all processes
        return Repaired(self.streams.pruned.stack, records, spent, time.perf_counter() - started)

    def finish(self) -> None:
        """What is left to do once all gaps are closed."""

    def as_fitted(self, stream: torch.Tensor) -> torch.Tensor:
        """Rows of the pruned stream [T, d] as the dense model has them, whatever the basis that it runs in."""
        return stream

    def as_run(self, change: torch.Tensor) -> torch.Tensor:
        """What is added to a writer, [k, d] in the dense model's basis, in the one that the pruned stream runs in."""
        return change

    @property
    def work(self) -> int:
        """Layers x windows that will be run."""
        stack, gaps = self.streams.pruned.stack, gaps_of(self.streams.pruned.stack)
        if not gaps:
            return 0
        last = sum(1 for layer in stack.alive if layer < gaps[-1].below)
        shared = max(gaps[0].below, 0)
        looks = sum(len(list(self._looks(gap))) for gap in gaps)
        return (gaps[-1].above + last - shared + looks) * self.streams.sweeper.windows.count

    def _looks(self, gap: Gap) -> Iterator[str]:
        """The passes through the layer below the gap, by what each sets."""
        if gap.below < 0:
            return
        writer = mlp_writer(self.decoder, gap.below) if self.fitted else None
        if writer is not None and writer.norm is not None:
            yield from ["normed"] * NORM_PASSES
            yield "gain"
        elif writer is None:
            yield "scalar"
        else:
            if self.joint and attention_writer(self.decoder, gap.below) is not None:
                yield "joint"
            yield "mlp"

    def close(self, gap: Gap, advance: Advance) -> GapRecord:
        streams = self.streams
        position = sum(1 for layer in streams.pruned.stack.alive if layer < gap.below)
        if position == gap.below:  # below the lowest gap the two are one
            streams.dense.carry(position, advance)
            streams.pruned.join(streams.dense)
        streams.pruned.carry(position, advance)
        streams.dense.carry(gap.above, advance)
        if gap.below < 0:
            return self._at_the_bottom(gap)
        record = GapRecord(list(gap.layers), [], 1.0, self.ridge, 0.0, 0.0)
        writer = mlp_writer(self.decoder, gap.below) if self.fitted else None
        if writer is not None and writer.norm is not None:
            return self._behind_norm(gap, writer, record, advance)
        scale: float | None = None if self.scalar else 1.0
        before: float | None = None
        for look in self._looks(gap):
            attention = attention_writer(self.decoder, gap.below) if look == "joint" else None
            sums = self._sums(gap, [w for w in (attention, writer) if w is not None], advance)
            scale = sums.scalar if scale is None else scale
            scale = scale if scale > 0 else 1.0  # the layers turn the stream around: no size is right
            before = sums.error(scale) if before is None else before
            after = sums.error(scale)
            if writer is not None:
                missing = sums.missing(scale)
                change = sums.solve(self.ridge, missing)
                after = fitted_error(sums, scale, missing, change)
                taken, part = (attention, change[: -writer.width(self._layer(gap))]) if attention else (writer, change)
                part = self.as_run(part / taken.multiplier)
                self._set(changed(self.decoder, streams.pruned.stack, gap.below, taken, part))
                record.fitted.append(f"{taken.path}.weight")
        assert scale is not None
        assert before is not None
        self._seam(gap, scale)
        return replace(record, scale=scale, error_before=before, error_after=after)

    def _layer(self, gap: Gap) -> torch.nn.Module:
        return self.decoder.layers[gap.below]

    def _set(self, stack: LayerStack) -> None:
        self.streams.pruned.stack = stack

    def _seam(self, gap: Gap, scale: float) -> None:
        """Have the stream take the scale on its way over the gap; the final norm absorbs one on top."""
        stack = self.streams.pruned.stack
        if gap.above < stack.num_layers:
            seams = list(stack.seams)
            seams[stack.position(gap.above)] = scale
            self._set(replace(stack, seams=tuple(seams)))

    def _at_the_bottom(self, gap: Gap) -> GapRecord:
        """No layer below to fit: the embedding, times a scalar."""
        sums = NormalEquations.empty(0, self.decoder.hidden_size, self.decoder.device)
        for batch in self.streams.sweeper.batches:
            y, z = (token_rows(batch, one.get(batch)) for one in (self.streams.pruned, self.streams.dense))
            sums.add(y[:, :0], y, z)
        sums = sums.summed()
        scale = sums.scalar if self.scalar and sums.scalar > 0 else 1.0
        self._seam(gap, scale)
        return GapRecord(list(gap.layers), [], scale, self.ridge, sums.error(scale), sums.error(scale))

    @contextmanager
    def _watching(self, gap: Gap, paths: Sequence[str]) -> Iterator[list[Watched]]:
        seen = [Watched() for _ in paths]
        with ExitStack() as held:
            for path, watched in zip(paths, seen, strict=True):
                held.enter_context(self.decoder.watching(self._layer(gap).get_submodule(path), watched.see))
            yield seen

    def _look(self, gap: Gap, see: Callable[[Batch, torch.Tensor, torch.Tensor], None], advance: Advance) -> None:
        """Run the layer below the gap and have ``see(batch, y, z)`` get the tokens' rows on either side of it."""

        def finish(batch: Batch, stream: torch.Tensor) -> None:
            see(batch, self.as_fitted(token_rows(batch, stream)), token_rows(batch, self.streams.dense.get(batch)))

        self.streams.pruned.look(self.streams.pruned.at + 1, finish, advance)

    def _sums(self, gap: Gap, writers: Sequence[Writer], advance: Advance) -> NormalEquations:
        """Of the writers' features side by side."""
        layer, d = self._layer(gap), self.decoder.hidden_size
        sums = NormalEquations.empty(sum(w.width(layer) for w in writers), d, self.decoder.device)
        with self._watching(gap, [writer.path for writer in writers]) as seen:
            rows = side_by_side([watched.rows for watched in seen]) if seen else None
            self._look(gap, lambda batch, y, z: sums.add(y[:, :0] if rows is None else rows(batch), y, z), advance)
        return sums.summed()

    def _behind_norm(self, gap: Gap, writer: Writer, record: GapRecord, advance: Advance) -> GapRecord:
        """The layer writes ``g * W h / rms(W h)``. Each pass is linear least squares for W with the root mean square
        held at what the last W gives; each draws to the W that was there."""
        decoder, layer = self.decoder, gap.below
        d, width = decoder.hidden_size, writer.width(self._layer(gap))
        weight_name, gain_name = f"{writer.path}.weight", f"{writer.norm}.weight"
        first = self.streams.pruned.stack
        offset = decoder.family.gain_offset
        gain = (standing(decoder, first, layer, gain_name) + offset).to(decoder.device)
        inverse = torch.where(gain.abs() > 1e-3 * gain.abs().mean(), 1.0 / gain, 0.0)
        change = torch.zeros(width, d, dtype=torch.float64, device=decoder.device)
        error: float | None = None
        for _ in range(NORM_PASSES):
            sums = NormalEquations.empty(width, d, decoder.device)
            with self._watching(gap, [writer.path]) as (seen,):

                def see(
                    batch: Batch, y: torch.Tensor, z: torch.Tensor, seen: Watched = seen, sums: NormalEquations = sums
                ) -> None:
                    h, m = seen.rows(batch), seen.rows(batch, of_output=True)
                    work = torch.promote_types(h.dtype, torch.float32)
                    sums.add(h.to(work) * weight(m.to(work)), y, z)

                self._look(gap, see, advance)
            sums = sums.summed()
            error = sums.error(1.0) if error is None else error
            missing = sums.missing(1.0) * inverse + sums.gram.double() @ change
            change = sums.solve(self.ridge, missing)
            self._set(changed(decoder, first, layer, writer, change))
        products = torch.zeros(2, d, dtype=sums_dtype(d), device=decoder.device)
        rows = torch.zeros(2, dtype=torch.float64, device=decoder.device)
        with self._watching(gap, [writer.path]) as (seen,):

            def see_gain(batch: Batch, y: torch.Tensor, z: torch.Tensor) -> None:
                m = seen.rows(batch, of_output=True)
                m, y, z = (one.to(torch.promote_types(one.dtype, torch.float32)) for one in (m, y, z))
                w = weight(z)
                n, short = m * weight(m) * w, (z - y) * w
                products.add_(torch.stack([(n * short).sum(dim=0), n.square().sum(dim=0)]))
                rows.add_(torch.stack([short.square().sum(dtype=torch.float64), (z * w).square().sum()]))

            self._look(gap, see_gain, advance)
        met, square = total(products).double()
        short, size = total(rows).tolist()
        step = torch.where(square > 0, met / ((1.0 + GAIN_RIDGE) * square).clamp(min=TINY), 0.0)
        short += float((-2 * step * met + step.square() * square).sum())
        self._set(overlaid(self.streams.pruned.stack, layer, {gain_name: (gain + step - offset).cpu()}))
        assert error is not None
        after = (max(short, 0.0) / size) ** 0.5 if size else 0.0
        return replace(record, fitted=[weight_name, gain_name], error_before=error, error_after=after)


TINY = torch.finfo(torch.float64).tiny


def fitted_error(sums: NormalEquations, scalar: float, missing: torch.Tensor, change: torch.Tensor) -> float:
    """``|z - a (y + h D)| / |z|``, from the sums alone."""
    zz = float(sums.squares[0])
    left = (sums.error(scalar) ** 2) * zz / scalar**2
    left += float((change * (sums.gram.double() @ change - 2 * missing)).sum())
    return float((max(left, 0.0) * scalar**2 / zz) ** 0.5) if zz else 0.0
