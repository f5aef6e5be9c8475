"""The statistics of a model alone, for tools that decide themselves: every pair of layer boundaries from one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Unpack

from prunecomp.engine.gram import gram_demand
from prunecomp.engine.run import Run
from prunecomp.engine.statistics import Statistics
from prunecomp.engine.usual import usual
from prunecomp.io.escape import one_line
from prunecomp.io.plain import finite
from prunecomp.options import PruneOptions
from prunecomp.options.keywords import CollectKeywords
from prunecomp.pruning.session import Session


@dataclass(frozen=True, eq=False, repr=False)
class Collected:
    """Statistics of a model with L layers over N sequences. Boundary i is what enters layer i; boundary L is what
    leaves the last layer, before the final norm. A span (i, j), i < j, is the layers i to j - 1."""

    model: str
    num_layers: int
    cosine: np.ndarray
    """[L+1, L+1] float64: mean over all tokens of cos(x_i, x_j); 0.5 for a token with a zero vector at either."""
    angular: np.ndarray
    """[L+1, L+1] float64: mean over all tokens of acos(cos(x_i, x_j)) / pi, from 0 to 1."""
    norm: np.ndarray
    """[L+1] float64: mean over all tokens of the L2 norm of x_i."""
    scale: np.ndarray
    """[L+1, L+1] float64, NaN unless i < j: the scale that takes the place of the span (Prune&Comp, section 4), the
    mean over sequences and channels of the ratio of mean magnitudes, x_j over x_i."""
    norm_ratio: np.ndarray
    """[L+1, L+1] float64, NaN unless i < j: mean over sequences of the ratio of mean token norms, x_j over x_i."""
    least_squares: np.ndarray
    """[L+1, L+1] float64, NaN unless i < j: the a that minimises sum |x_j - a x_i|^2 over all tokens. Not positive
    where the span turns the stream around."""
    dead_channels: np.ndarray
    """[L+1, L+1] int64, 0 unless i < j: (sequence, channel) pairs that ``scale`` leaves out, x_i being zero there."""
    zero_rows: np.ndarray
    """[L] int64: tokens at which the layer's input or output is the zero vector."""
    sequences: int
    tokens: int
    calibration_digest: str
    """SHA-256 of the windows: equal digests mean equal windows."""
    streamed: bool
    """Whether the weights came to the device a layer at a time."""
    layer_forwards: float
    """Passes of all windows through one layer that this took: L."""

    def __repr__(self) -> str:
        return f"Collected({one_line(self.model)}: {self.num_layers} layers, {self.tokens:,} tokens)"

    def record(self) -> dict[str, Any]:
        """The same as plain data that JSON can hold: lists for arrays, None for NaN."""
        held = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}
        return {name: finite(value) for name, value in held.items()}


@usual()
def collect(model: Any, calibration: Any = None, **options: Unpack[CollectKeywords]) -> Collected:
    """Cosines, angles, norms and scales of every span of layers, from one streaming pass; nothing is removed.

    Model, calibration and options are those of :func:`prunecomp.prune`. All boundaries of a window are held at once:
    with little memory the windows are taken a shard at a time, and a model that does not fit is streamed. Raises a
    subclass of :class:`prunecomp.errors.PrunecompError` that says what to do.

    >>> tokens = torch.arange(64).view(2, 32)  # [N, S]
    >>> found = prunecomp.collect("examples/reference_model", tokens, dtype="float32")
    >>> found.num_layers, found.cosine.shape, bool(found.scale[3, 5] > 0)
    (16, (17, 17), True)
    """
    asked = PruneOptions.of("collect", {"calibration": calibration, **options})
    session = Session(model, asked)
    windows = session.calibration()
    placement = session.place(windows.count, windows.seqlen, gram_demand(session.model_source.shape()))
    decoder = session.load(placement)
    run = Run(decoder, windows, placement, spans=True, backend=asked.backend, progress=asked.progress)
    for shard in run.shards:
        run.update(shard, keep=False)
    statistics = run.statistics
    num_layers, num_tokens = decoder.num_layers, statistics.num_tokens
    records = [statistics.of(layer) for layer in range(num_layers)]
    norms = [*(record.input_norm.sum() for record in records), records[-1].norm.sum()]
    return Collected(
        model=session.model_source.name,
        num_layers=num_layers,
        cosine=statistics.mean("cosine").numpy(),
        angular=statistics.mean("angular").numpy(),
        norm=np.array([float(norm) for norm in norms]) / num_tokens,
        **_spans(statistics, num_layers),
        zero_rows=np.array([int(record.zero_rows.sum()) for record in records], dtype=np.int64),
        sequences=windows.count,
        tokens=num_tokens,
        calibration_digest=windows.digest,
        streamed=placement.group_size is not None,
        layer_forwards=run.layer_forwards,
    )


def _spans(statistics: Statistics, num_layers: int) -> dict[str, np.ndarray]:
    """What is known of each span, in matrices [L+1, L+1]."""
    m = num_layers + 1
    scale, norm_ratio, least_squares = (np.full((m, m), np.nan) for _ in range(3))
    dead_channels = np.zeros((m, m), dtype=np.int64)
    for i in range(num_layers):
        for j in range(i + 1, m):
            record = statistics.of(*range(i, j))
            scale[i, j] = float(record.ratio.mean())
            norm_ratio[i, j] = float((record.norm / record.input_norm).mean())
            least_squares[i, j] = float(record.dot.sum() / record.input_square.sum())
            dead_channels[i, j] = int(record.dead_channels.sum())
    return {"scale": scale, "norm_ratio": norm_ratio, "least_squares": least_squares, "dead_channels": dead_channels}
