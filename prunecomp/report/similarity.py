"""A picture of how alike the states of a token are, all the way up a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunecomp.errors import OptionError
from prunecomp.pruning.scores import ScoreResult
from prunecomp.report.drawing import check_matplotlib, new_figure


def similarity_map(result: ScoreResult, path: str | Path) -> Path:
    """Draw the (L + 1) x (L + 1) mean cosines of :attr:`ScoreResult.similarity` into the picture file ``path``, whose
    name says in which format.

    A block of layers that turns the stream little is a bright square on the diagonal: it may go. Raises
    :class:`OptionError` where blocks were not scored, or without matplotlib.
    """
    check_matplotlib()
    if result.similarity is None:
        raise OptionError("no similarities were taken: score with a span of 2 or more")
    figure = new_figure(6.4, 5.6)
    draw_similarity(figure, result.similarity)
    figure.savefig(path)
    return Path(path)


def draw_similarity(figure: Any, cosines: Sequence[Sequence[float]]) -> None:
    """[L+1, L+1] mean cosines on ``figure``. Boundary l is what enters layer l; the last one leaves the model."""
    axes = figure.add_subplot()
    picture = axes.imshow(cosines, vmax=1.0, origin="lower", cmap="viridis", interpolation="none")
    axes.set_xlabel("layer that the state enters")
    axes.set_ylabel("layer that the state enters")
    figure.colorbar(picture, label="mean cosine")
