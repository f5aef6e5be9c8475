"""What rides on a sweep: objects that see every layer's input and output once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from prunecomp.data.windows import Batch, Windows
from prunecomp.engine.parallel import Workers
from prunecomp.errors import NumericalError
from prunecomp.ops import LayerStats, layer_stats


class Sink(Protocol):
    def update(self, layer: int, batch: Batch, x: torch.Tensor, y: torch.Tensor) -> None:
        """See a layer's input ``x`` and output ``y``, [B, S, d], of a micro-batch; do not wait for a device."""
        ...

    def drain(self) -> None:
        """Called when a micro-batch has passed a group of layers: bring what was seen before to the host."""
        ...

    def finish(self) -> None:
        """Called when the sweep is over: nothing more will be seen, and results must be complete."""
        ...


def mean_ratio(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per sequence the mean over channels of ``after / before``, and how many channels were left out of it.

    Both [N, d] float64, sums of |x| over the tokens of a sequence (Prune&Comp, section 4). A channel whose sum below
    the layer is zero is left out.
    """
    alive = before > 0
    ratios = (after / before.masked_fill(~alive, 1.0)).masked_fill(~alive, 0.0)
    return ratios.sum(dim=1) / alive.sum(dim=1), (~alive).sum(dim=1)


def batch_stats(batch: Batch, x: torch.Tensor, y: torch.Tensor, *, with_input: bool, backend: str | None) -> LayerStats:
    """:func:`prunecomp.ops.layer_stats` of a micro-batch's B sequences, padded, packed or of one length."""
    if not batch.packed:
        return layer_stats(x, y, batch.lengths, with_input=with_input, backend=backend)
    each = [
        layer_stats(one, other, with_input=with_input, backend=backend)
        for one, other in zip(batch.sequences(x), batch.sequences(y), strict=True)
    ]
    return LayerStats(*(torch.cat(parts) for parts in zip(*each, strict=True)))


def _sent_to_host(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself on a CPU; from a GPU a pinned copy that is complete when the queued work before it is."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def remedy(dtype: torch.dtype | None, what: str) -> str:
    """What to do about values that are not finite in a model that computes in ``dtype``."""
    wider = ", or run with --dtype float32 or bfloat16, which reach further" if dtype == torch.float16 else ""
    return f"Look at the {what}{wider}."


@dataclass
class LayerRecord:
    """What one layer did to each of N sequences, on the CPU."""

    sums: torch.Tensor
    """[N, 8] float64, the columns of :data:`prunecomp.ops.reference.SUMS`."""
    counts: torch.Tensor
    """[N, 3] int64."""
    ratio: torch.Tensor
    """[N] float64: mean over channels of the ratio of magnitudes, output over input."""
    dead_channels: torch.Tensor
    """[N] int64: channels left out of it."""
    input_magnitude: torch.Tensor
    """[N, d] float64: sum of |x| by channel; [N, 0] unless channels are kept."""
    magnitude: torch.Tensor
    """[N, d] float64: the same of the output."""

    @classmethod
    def unseen(cls, n: int, channels: int) -> LayerRecord:
        nan = torch.full((n, 9 + 2 * channels), torch.nan, dtype=torch.float64)
        counts = torch.zeros(n, 4, dtype=torch.int64)
        sums, ratio, before, after = nan.split((8, 1, channels, channels), dim=1)
        return cls(sums, counts[:, :3], ratio[:, 0], counts[:, 3], before, after)


@dataclass(frozen=True)
class _Seen:
    """A layer's record of some sequences on its way to the host: [B, 8 + 3 + 2], then channels, float64."""

    layer: int
    rows: slice
    packed: torch.Tensor


class LayerSink:
    """For every surviving layer: statistics of its input against its output, sequence by sequence.

    Everything comes from :func:`prunecomp.ops.layer_stats`: each state is read once as an output and once as the next
    layer's input, in one call. What lies below a cut stays valid when a layer is removed. With several workers each
    sees its own sequences, and :meth:`finish` gives all of them everything. ``first`` is where the windows stand in a
    larger set; with ``channels`` the magnitudes of every channel are kept, for ratios across several layers.
    """

    def __init__(
        self,
        windows: Windows,
        workers: Workers,
        backend: str | None = None,
        *,
        first: int = 0,
        channels: bool = False,
    ) -> None:
        self._windows = windows
        self._workers = workers
        self._backend = backend
        self._first = first
        self.channels = channels
        """Whether magnitudes by channel are kept of what will be seen."""
        self._local: dict[int, LayerRecord] = {}
        self._layers: dict[int, LayerRecord] = {}
        self._pending: list[_Seen] = []
        self._passed = 0  # how many of the pending ones belong to micro-batches before the current one
        self._arrival: torch.cuda.Event | None = None  # when those have reached the host
        self._previous: tuple[torch.Tensor, torch.Tensor] | None = None
        self._device: torch.device | None = None
        self._dtype: torch.dtype | None = None

    def update(self, layer: int, batch: Batch, x: torch.Tensor, y: torch.Tensor) -> None:
        # Between two layers with no seam the stream is the very same tensor: its magnitudes are known already.
        known = self._previous is not None and self._previous[0] is x
        stats = batch_stats(batch, x, y, with_input=not known, backend=self._backend)
        before = self._previous[1] if known and self._previous else stats.input_magnitude
        self._previous, self._device, self._dtype = (y, stats.magnitude), y.device, y.dtype
        # The magnitudes by channel end here: one number a sequence is all that is needed of them.
        ratio, dead = mean_ratio(before, stats.magnitude)
        columns = [stats.sums, stats.counts, ratio.unsqueeze(1), dead.unsqueeze(1)]
        packed = torch.cat(columns + ([before, stats.magnitude] if self.channels else []), dim=1)
        self._pending.append(_Seen(layer, batch.rows, _sent_to_host(packed)))

    def drain(self) -> None:
        """Look at the micro-batch *before* the last one: the last one's work may still be queued on a device, which
        never waits for the host to look.

        Raises :class:`NumericalError` naming the first layer and sequence with a value that is not finite.
        """
        self._previous = None
        self._collect(self._passed)
        self._passed = len(self._pending)
        if self._device is not None and self._device.type == "cuda":
            self._arrival = torch.cuda.current_stream(self._device).record_event()

    def finish(self) -> None:
        self._collect(len(self._pending))
        self._passed = 0
        for layer, record in sorted(self._local.items()):
            self._layers[layer] = LayerRecord(*(self._workers.gather(part) for part in vars(record).values()))
        self._local.clear()

    def _collect(self, count: int) -> None:
        if self._arrival is not None:
            self._arrival.synchronize()
        for seen in self._pending[:count]:
            record = self._local.get(seen.layer)
            if record is None:
                channels = (seen.packed.shape[1] - 13) // 2
                record = self._local[seen.layer] = LayerRecord.unseen(self._workers.share, channels)
            rows = seen.rows
            d = record.magnitude.shape[1]
            sums, counts, ratio, dead, before, after = seen.packed.split((8, 3, 1, 1, d, d), dim=1)
            record.sums[rows], record.counts[rows] = sums, counts.long()
            record.ratio[rows], record.dead_channels[rows] = ratio[:, 0], dead[:, 0].long()
            record.input_magnitude[rows], record.magnitude[rows] = before, after
            self._check(seen.layer, rows, record.counts[rows, -1])
        del self._pending[:count]

    def _check(self, layer: int, rows: slice, nonfinite: torch.Tensor) -> None:
        bad = nonfinite.nonzero()
        if len(bad):
            sequence, count = self._workers.first + rows.start + int(bad[0]), int(nonfinite[bad[0]])
            lengths = self._windows.lengths
            length = self._windows.seqlen if lengths is None else int(lengths[sequence])
            raise NumericalError(
                f"layer {layer}, sequence {self._first + sequence}: {count} of {length} tokens have an activation that "
                f"is not finite. {remedy(self._dtype, 'weights of the layer')}"
            )

    def record(self, layer: int) -> LayerRecord:
        """What is known of a layer, over all sequences."""
        return self._layers[layer]

    @property
    def tokens(self) -> torch.Tensor:
        """[N] int64: tokens of each sequence."""
        if self._windows.lengths is not None:
            return self._windows.lengths
        return torch.full((self._windows.count,), self._windows.seqlen)

    def fork(self) -> LayerSink:
        """The same, to go its own way: records are shared, and never written to once complete."""
        twin = LayerSink(self._windows, self._workers, self._backend, first=self._first, channels=self.channels)
        twin._layers = dict(self._layers)
        return twin
