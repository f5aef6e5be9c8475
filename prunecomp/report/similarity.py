"""A picture of how alike the states of a token are, all the way up a model."""

from __future__ import annotations

from pathlib import Path

from prunecomp.errors import OptionError
from prunecomp.pruning.scores import ScoreResult

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True


def similarity_map(result: ScoreResult, path: str | Path) -> Path:
    """Draw the (L + 1) x (L + 1) mean cosines of :attr:`ScoreResult.similarity` into the picture file ``path``, whose
    name says in which format.

    A block of layers that turns the stream little is a bright square on the diagonal: it may go. Raises
    :class:`OptionError` where blocks were not scored, or without matplotlib.
    """
    if not INSTALLED:
        raise OptionError("matplotlib is not installed: pip install 'prunecomp[report]'")
    if result.similarity is None:
        raise OptionError("no similarities were taken: score with a span of 2 or more")
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    axes = figure.add_subplot()
    # Boundary l is what enters layer l; the last one is what leaves the model.
    picture = axes.imshow(result.similarity, vmax=1.0, origin="lower", cmap="viridis")
    axes.set_xlabel("layer that the state enters")
    axes.set_ylabel("layer that the state enters")
    figure.colorbar(picture, label="mean cosine")
    figure.savefig(path)
    return Path(path)
