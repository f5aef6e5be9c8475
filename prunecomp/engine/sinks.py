"""What rides on a sweep: objects that see every layer's input and output once."""

from __future__ import annotations

import torch

from prunecomp.data.windows import Batch, Windows
from prunecomp.engine.parallel import Workers
from prunecomp.engine.statistics import COLUMNS, mean_ratio
from prunecomp.errors import NumericalError
from prunecomp.ops import LayerStats, layer_stats


def batch_stats(batch: Batch, x: torch.Tensor, y: torch.Tensor, *, with_input: bool, backend: str | None) -> LayerStats:
    """:func:`prunecomp.ops.layer_stats` of a micro-batch's B sequences, padded, packed or of one length."""
    if not batch.packed:
        return layer_stats(x, y, batch.lengths_on(x.device), with_input=with_input, backend=backend)
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


class LayerSink:
    """For every layer that passes: statistics of its input against its output, sequence by sequence.

    Everything comes from :func:`prunecomp.ops.layer_stats`: each state is read once as an output and once as the next
    layer's input, in one call. With several workers each sees its own sequences, and :meth:`finish` gives all of them
    everything. ``first`` is where the windows stand in a larger set; with ``channels`` the magnitudes of every channel
    are kept, for ratios across several layers.
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
        self._channels = channels
        self._mine: dict[int, torch.Tensor] = {}  # the table of this worker's sequences, NaN where not seen yet
        self._pending: list[tuple[int, slice, torch.Tensor]] = []  # layer, rows and columns on their way to the host
        self._passed = 0  # how many of the pending ones belong to micro-batches before the current one
        self._arrival: torch.cuda.Event | None = None  # when those have reached the host
        self._previous: tuple[torch.Tensor, torch.Tensor] | None = None
        self._device: torch.device | None = None
        self._dtype: torch.dtype | None = None
        self.table: dict[int, torch.Tensor] = {}
        """By layer, of all workers' sequences, once the sweep is over: :meth:`LayerRecord.read` reads it."""

    def update(self, layer: int, batch: Batch, x: torch.Tensor, y: torch.Tensor) -> None:
        """See a layer's input ``x`` and output ``y``, [B, S, d], of a micro-batch; no device is waited for."""
        # Between two layers with no seam the stream is the very same tensor: its magnitudes are known already.
        known = self._previous is not None and self._previous[0] is x
        stats = batch_stats(batch, x, y, with_input=not known, backend=self._backend)
        before = self._previous[1] if known and self._previous else stats.input_magnitude
        self._previous, self._device, self._dtype = (y, stats.magnitude), y.device, y.dtype
        # The magnitudes by channel end here: one number a sequence is all that is needed of them.
        ratio, dead = mean_ratio(before, stats.magnitude)
        columns = [stats.sums, stats.counts, ratio.unsqueeze(1), dead.unsqueeze(1)]
        packed = torch.cat(columns + ([before, stats.magnitude] if self._channels else []), dim=1)
        self._pending.append((layer, batch.rows, _sent_to_host(packed)))

    def drain(self) -> None:
        """Called when a micro-batch has passed a group of layers. Look at the one *before* it: its own work may still
        be queued on a device, which never waits for the host to look.

        Raises :class:`NumericalError` naming the first layer and sequence with a value that is not finite.
        """
        self._previous = None
        self._collect(self._passed)
        self._passed = len(self._pending)
        if self._device is not None and self._device.type == "cuda":
            self._arrival = torch.cuda.current_stream(self._device).record_event()

    def finish(self) -> None:
        """The sweep is over: have :attr:`table` complete."""
        self._collect(len(self._pending))
        for layer, mine in sorted(self._mine.items()):
            self.table[layer] = self._workers.gather(mine)

    def _collect(self, count: int) -> None:
        if self._arrival is not None:
            self._arrival.synchronize()
        for layer, rows, packed in self._pending[:count]:
            if layer not in self._mine:
                self._mine[layer] = packed.new_full((self._workers.share, packed.shape[1]), torch.nan)
            self._mine[layer][rows] = packed
            self._check(layer, rows, packed[:, COLUMNS.index("nonfinite_rows")])
        del self._pending[:count]

    def _check(self, layer: int, rows: slice, nonfinite: torch.Tensor) -> None:
        bad = nonfinite.nonzero()
        if len(bad):
            sequence, count = self._workers.first + rows.start + int(bad[0]), int(nonfinite[bad[0]])
            length = int(self._windows.each_length[sequence])
            raise NumericalError(
                f"layer {layer}, sequence {self._first + sequence}: {count} of {length} tokens have an activation that "
                f"is not finite. {remedy(self._dtype, 'weights of the layer')}"
            )
