"""What a comparison gives: plain, frozen values that go to JSON and come back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from prunecomp.compare.arms import Arm
from prunecomp.data.windows import Windows
from prunecomp.evaluation.tasks import TaskScore
from prunecomp.io.escape import html_table, one_line
from prunecomp.io.values import listed
from prunecomp.repair import GapRecord, Outcome


@dataclass(frozen=True)
class Text:
    """Windows that something was calibrated or measured on."""

    name: str
    source: str
    windows: int
    seqlen: int
    digest: str
    bos: str = "start"

    @classmethod
    def of(cls, name: str, windows: Windows) -> Text:
        return cls(name, windows.source, windows.count, windows.seqlen, windows.digest, windows.bos)


@dataclass(frozen=True)
class Measurement:
    """An arm after so many layers were removed."""

    arm: Arm
    layers: int
    removed: list[int]
    """Original indices, in the order of removal."""
    scales: list[float]
    """What each removal left behind."""
    perplexity: dict[str, float]
    """By text."""
    layer_forwards: float
    """Passes of the calibration set through one layer that its choices needed."""
    seconds: float
    """That scores and compensations took on the way, the perplexities left out."""
    losses: dict[str, list[float]] = field(default_factory=dict)
    """By text, nats a token of each window: what standard errors and paired differences are taken from."""
    agreement: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """With the dense model, by text: ``kl`` in nats a token, ``top1``, and the standard error of each."""
    repair: Outcome | None = None
    """What was fitted, where the arm repairs: its layer-forwards and seconds are beside those above."""
    tasks: list[TaskScore] = field(default_factory=list)
    """Scores in the tasks of lm-eval, where some were asked for, in the order of :attr:`Comparison.dense_tasks`."""


@dataclass(frozen=True)
class ArmWork:
    """All that an arm needed, whether or not another arm needed it too."""

    arm: Arm
    layer_forwards: float
    """Passes of the calibration set through one layer."""
    seconds: float
    """That scores and compensations took; perplexities left out."""
    window_forwards: int
    """Passes of one window through one layer: calibration and evaluation windows alike."""
    repair_layer_forwards: float = 0.0
    """Passes of the calibration set through one layer that its repairs took, all together."""
    repair_seconds: float = 0.0


@dataclass(frozen=True, repr=False)
class Comparison:
    """The outcome of :func:`prunecomp.compare`, complete or so far."""

    model: str
    num_layers: int
    layers: list[int]
    """After how many removals there are measurements."""
    calibration: Text
    texts: list[Text]
    dense: dict[str, float]
    """Perplexity of the model as it is, by text."""
    dense_losses: dict[str, list[float]] = field(default_factory=dict)
    """Its nats a token of each window, by text."""
    dense_tasks: list[TaskScore] = field(default_factory=list)
    """Its scores in the tasks of lm-eval, where some were asked for."""
    measurements: list[Measurement] = field(default_factory=list)
    work: list[ArmWork] = field(default_factory=list)
    window_forwards: int = 0
    """Passes of one window through one layer that were run: what several arms need was run once."""
    seconds: float = 0.0
    sittings: int = 1
    """In how many goes it was run: after an interruption, what unfinished arms had run is run again."""
    identity: dict[str, Any] = field(default_factory=dict)
    """All that the numbers depend on beside the arms."""
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    """That it was made by, where it was one."""

    def __repr__(self) -> str:
        return f"Comparison({self._summary()})"

    def _summary(self) -> str:
        texts = "; ".join(f"{one_line(name)} {value:.4g} dense" for name, value in self.dense.items())
        gone = f"{len(self.arms)} arms, {listed(self.layers)} of {self.num_layers} layers gone"
        return f"{one_line(self.model)}: {gone}" + (f"; perplexity on {texts}" if texts else "")

    def _repr_html_(self) -> str:
        """Perplexities by arm, for a notebook."""
        columns = [(text.name, n) for text in self.texts for n in self.layers]
        rows = []
        for arm in self.arms:
            found = [(text, self.measurement(arm, n)) for text, n in columns]
            rows.append((arm.name, *("" if m is None else f"{m.perplexity[text]:.5g}" for text, m in found)))
        return html_table(self._summary(), ("arm", *(f"{text}, {n} gone" for text, n in columns)), rows)

    @property
    def arms(self) -> list[Arm]:
        """Those that were measured, in the order in which they were asked for."""
        return [one.arm for one in self.work]

    @property
    def window_forwards_separately(self) -> int:
        """What all arms one by one would have run."""
        return sum(one.window_forwards for one in self.work)

    @property
    def saving(self) -> float | None:
        """How many times as much that would have been; None after an interruption, where the two do not compare."""
        known = self.sittings == 1 and self.window_forwards
        return self.window_forwards_separately / self.window_forwards if known else None

    def measurement(self, arm: Arm, layers: int) -> Measurement | None:
        return next((m for m in self.measurements if m.arm == arm and m.layers == layers), None)

    def complete(self, arm: Arm, layers: list[int]) -> bool:
        """Whether the arm is measured after each of so many removals."""
        return all(self.measurement(arm, count) is not None for count in layers)

    def record(self) -> dict[str, Any]:
        """The comparison as plain data, as ``comparison.json`` holds it."""
        return {
            **asdict(self),
            "window_forwards_separately": self.window_forwards_separately,
            "saving": self.saving,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Comparison:
        """What :meth:`record` gave, back from JSON, where ``null`` is an infinite perplexity.

        Raises :class:`KeyError` or :class:`TypeError` for other data."""
        content = {key: record[key] for key in cls.__dataclass_fields__ if key in record}  # older ones have fewer

        def with_arm(entry: dict[str, Any]) -> dict[str, Any]:
            return {**entry, "arm": Arm(**entry["arm"])}

        def measured(perplexity: dict[str, Any]) -> dict[str, float]:
            return {text: math.inf if value is None else value for text, value in perplexity.items()}

        def scores(entry: dict[str, Any], name: str) -> list[TaskScore]:
            return [TaskScore.from_record(one) for one in entry.get(name, [])]

        def repaired(outcome: dict[str, Any] | None) -> Outcome | None:
            if outcome is None:
                return None
            losses = {name: measured(each) for name, each in outcome["losses"].items()}
            return Outcome(**{**outcome, "losses": losses, "gaps": [GapRecord(**gap) for gap in outcome["gaps"]]})

        return cls(
            **{
                **content,
                "calibration": Text(**content["calibration"]),
                "texts": [Text(**text) for text in content["texts"]],
                "dense": measured(content["dense"]),
                "dense_tasks": scores(content, "dense_tasks"),
                "measurements": [
                    Measurement(
                        **with_arm(
                            {
                                **entry,
                                "perplexity": measured(entry["perplexity"]),
                                "repair": repaired(entry.get("repair")),
                                "tasks": scores(entry, "tasks"),
                            }
                        )
                    )
                    for entry in content["measurements"]
                ],
                "work": [ArmWork(**with_arm(entry)) for entry in content["work"]],
            }
        )
