"""A run that stops at several numbers of layers: its models, side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from prunecomp.checkpoint.claim import claimed
from prunecomp.errors import OutputError
from prunecomp.evaluation.agreement import called
from prunecomp.io.escape import html_table, one_line
from prunecomp.io.escape import markdown as escaped
from prunecomp.io.plain import json_text
from prunecomp.io.values import listed
from prunecomp.names import CURVE, VERSION
from prunecomp.pruning.gates import measure
from prunecomp.pruning.journal import write_whole
from prunecomp.pruning.result import PruneResult

FORMAT = 1
"""Of the record: it rises when a field goes or changes its meaning."""
TABLE = "curve.md"
HEADINGS = ("gone", "layers", "parameters", "perplexity", "ratio", "KL", "top-1", "tasks", "repair", "s")


class Curve(Sequence[PruneResult]):
    """What :func:`prunecomp.curve` gives: a :class:`PruneResult` for each number of layers, the fewest first.

    ``layer_forwards`` are passes of all calibration windows through one layer, and ``seconds`` those of the run, for
    all of them together; ``evaluation_forwards`` the passes of all evaluation windows, by model.
    """

    def __init__(
        self,
        results: Sequence[PruneResult],
        *,
        layer_forwards: float,
        evaluation_forwards: Mapping[str, float],
        seconds: float,
        on_saved: Callable[[], None] | None = None,
    ) -> None:
        self._results = list(results)
        self.layer_forwards, self.seconds = layer_forwards, seconds
        self._evaluation_forwards = dict(evaluation_forwards)
        self.on_saved = on_saved
        if len(results) == 1:
            results[0].on_saved = on_saved

    @overload
    def __getitem__(self, number: int) -> PruneResult: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[PruneResult]: ...
    def __getitem__(self, number: int | slice) -> PruneResult | Sequence[PruneResult]:
        return self._results[number]

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        gone = listed([len(result.removed) for result in self])
        return f"Curve({one_line(self[0].model_source.name)}: {gone} of {self[0].stack.num_layers} layers gone)"

    def _repr_html_(self) -> str:
        headings, *rows = self.rows()
        return html_table(repr(self), headings, rows)

    def cost(self) -> dict[str, Any]:
        """What the run took, and what one to the largest number of layers alone would have taken of it: passes of all
        calibration windows and of all evaluation windows through one layer, and seconds. Exports are not in it."""
        alone = ("dense", called(len(self), len(self)))
        looked = self._evaluation_forwards
        return {
            "layer_forwards": self.layer_forwards,
            "evaluation_forwards": sum(looked.values()),
            "seconds": self.seconds,
            "largest_alone": {
                "layer_forwards": self[-1].layer_forwards,
                "evaluation_forwards": sum(looked.get(whose, 0.0) for whose in alone),
                "seconds": self[-1].seconds,
            },
        }

    def told_cost(self) -> str:
        """The same in words."""
        all_of_it, alone = (cost := self.cost()), cost["largest_alone"]
        more = {name: all_of_it[name] - alone[name] for name in alone}
        return (
            f"{self.layer_forwards:g} layer-forwards of the calibration and {cost['evaluation_forwards']:g} of the "
            f"evaluation, {self.seconds:.1f} s: {more['layer_forwards']:g}, {more['evaluation_forwards']:g} and "
            f"{more['seconds']:.1f} s more than {len(self[-1].removed)} layers alone"
        )

    def rows(self) -> list[list[str]]:
        """Headings, then a row for the dense model and for each number of layers, without columns of which nothing is
        known."""
        rows = [[*HEADINGS]]
        for stop in [self._dense(), *(self._stop(result) for result in self)]:
            rows.append([
                str(stop["layers"]), listed(stop["removed"]) if stop["removed"] else "", _count(stop["parameters"]),
                *(_shown(stop[name], form) for name, form in (
                    ("perplexity", ",.3f"), ("ratio", ".3f"), ("kl", ".3f"), ("top1", ".1%"), ("retained", ".1%"),
                    ("repair", ""),
                    ("seconds", ".1f"),
                )),
            ])  # fmt: skip
        known = [any(column[1:]) for column in zip(*rows, strict=True)]
        return [[cell for cell, some in zip(row, known, strict=True) if some] for row in rows]

    def markdown(self) -> str:
        """The table, and what it is of."""
        headings, *rows = self.rows()
        lines = [
            f"# {escaped(self[0].model_source.name)}, by layers gone", "",
            f"| {' | '.join(headings)} |", "|" + " ---: |" * len(headings),
            *(f"| {' | '.join(row)} |" for row in rows), "", self.told_cost() + ".",
        ]  # fmt: skip
        text = self[0].evaluation
        if text is not None:
            lines += ["", f"Perplexity: {text.count} x {text.seqlen} tokens of {escaped(str(text.source))}. Agreement: "
                      "with the dense model, of the models with their seams."]  # fmt: skip
        asked = [] if self[0].profile is None else self[0].profile.models[0].tasks
        if asked:
            which = f"{escaped(asked[0].task)} ({escaped(asked[0].metric)})"
            lines += ["", f"Tasks: what is retained of the dense score, {which}."]
        return "\n".join(lines) + "\n"

    def record(self) -> dict[str, Any]:
        """The curve as plain data, as ``curve.json`` holds it."""
        first = self[0].record()
        text = first["perplexity"] or {}
        return {
            "format": FORMAT,
            "prunecomp": VERSION,
            "model": first["model"],
            "num_layers": first["num_layers"],
            "calibration": first["calibration"],
            "evaluation": {name: text[name] for name in ("source", "windows", "seqlen", "bos")} if text else None,
            "dense": self._dense(),
            "stops": [self._stop(result) for result in self],
            "cost": self.cost(),
        }

    def _dense(self) -> dict[str, Any]:
        first = self[0]
        dense = None if first.perplexity is None else first.perplexity["dense"]
        return {
            "layers": 0, "removed": [],
            "parameters": measure(first.model_source, "params", range(first.stack.num_layers)),
            "perplexity": dense, "ratio": None, "measured_on": None, "kl": None, "top1": None, "retained": None,
            "repair": None, "profile": None,
            "layer_forwards": None, "seconds": None,
        }  # fmt: skip

    @staticmethod
    def _stop(result: PruneResult) -> dict[str, Any]:
        both = result.perplexity
        agreement = result.quality[1].agreement if result.quality else None
        tasks = [] if result.profile is None else result.profile.models[-1].tasks
        return {
            "layers": len(result.removed), "removed": result.removed,
            "parameters": measure(result.model_source, "params", result.stack.alive),
            "perplexity": None if both is None else both["pruned"],
            "ratio": None if both is None else both["pruned"] / both["dense"],
            "measured_on": None if both is None else result.measured_on,
            "kl": None if agreement is None else agreement.kl.value,
            "top1": None if agreement is None else agreement.top1.value,
            "retained": tasks[0].retained if tasks else None,
            "repair": None if result.repair is None else result.repair.taken,
            "profile": None if result.profile is None else result.profile.record(),
            "layer_forwards": result.layer_forwards, "seconds": result.seconds,
        }  # fmt: skip

    def folders(self, path: str | Path) -> Iterator[tuple[Path, PruneResult]]:
        """Where :meth:`save` writes each: below ``path``, by its number of layers."""
        for result in self:
            yield Path(path) / str(len(result.removed)), result

    def save(self, path: str | Path, *, whole: Collection[Path] = (), **saving: Any) -> Path:
        """Write each model to a folder of its own below ``path``, named after its number of layers, as
        :meth:`PruneResult.save` with the options ``saving``; then ``curve.json`` and ``curve.md`` there. Those in
        ``whole`` are written already. Raises as that does."""
        out = Path(path)
        with claimed(out):
            for folder, result in self.folders(out):
                if folder not in whole:
                    result.save(folder, **saving)
            try:
                write_whole(out / CURVE, (json_text(self.record()) + "\n").encode())
                write_whole(out / TABLE, self.markdown().encode())
            except OSError as error:
                raise OutputError(f"{out} cannot be written to: {error}") from error
        if self.on_saved is not None:
            self.on_saved()
        return out


def _count(number: int) -> str:
    return next(f"{number / unit:.4g}{name}" for unit, name in ((1e9, "B"), (1e6, "M"), (1, "")) if number >= unit)


def _shown(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)
