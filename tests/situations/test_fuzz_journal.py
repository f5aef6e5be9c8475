"""Journals of any bytes and of any structure: what they tell is taken, or refused by an error of the package."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunecomp.errors import JournalError
from prunecomp.pruning.journal import Journal, _digest
from prunecomp.pruning.result import RoundRecord

EXAMPLES = 3000 if os.environ.get("PRUNECOMP_SOAK") else 150
fuzz = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=not os.environ.get("PRUNECOMP_SOAK"),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

IDENTITY = {"model": "m", "options": {"layers": 3}}
MADE = RoundRecord(3, 0.1, 1.25, {3: 0.1, 4: 5e-324}, 7, 0, 0, 0.5, [3], 8)
LAYERS = 6

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def run() -> dict[str, Any]:
    rounds = [{**vars(MADE), "scores": {"3": 0.1, "4": 0.2}}, {**vars(MADE), "layer": 1, "block": [1], "scores": {}}]
    return copy.deepcopy({"identity": IDENTITY, "rounds": rounds, "weights": {}})


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a structure."""
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, one in inner for place in places(one, (*at, key)))]


def taken_or_refused(path: Path) -> None:
    try:
        held = Journal.open(path, IDENTITY, resume=True)
        held.check(LAYERS, range(LAYERS), 3)
    except JournalError as error:
        message = str(error).replace(str(path), "")
        assert message.isprintable()
        assert len(message) < 2000
        return
    assert all(isinstance(each, RoundRecord) and each.scale > 0 and 0 <= each.layer < LAYERS for each in held.rounds)


@fuzz
@given(data=st.binary(max_size=200) | st.text(alphabet='[]{}",:0159eE-.ntfN "', max_size=200).map(str.encode))
def test_any_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    taken_or_refused(path)


@fuzz
@given(data=st.data())
def test_any_structure_well_sealed(path: Path, data: st.DataObject) -> None:
    told: Any = run()
    for _ in range(data.draw(st.integers(1, 3))):
        *outer, last = data.draw(st.sampled_from(places(told)[1:] or [("rounds",)]))
        inner = told
        for key in outer:
            inner = inner[key]
        if isinstance(inner, dict) and data.draw(st.booleans()):
            inner.pop(last, None)
            inner[data.draw(st.text())] = data.draw(plain)
        else:
            inner[last] = data.draw(plain)
    path.write_text(json.dumps({"format": 3, "sha256": _digest(told), "run": told}))
    taken_or_refused(path)


@fuzz
@given(told=plain)
def test_any_run_well_sealed(path: Path, told: Any) -> None:
    path.write_text(json.dumps({"format": 3, "sha256": _digest(told), "run": told}))
    taken_or_refused(path)


def test_the_structure_that_is_changed_is_one_that_is_taken(path: Path) -> None:
    path.write_text(json.dumps({"format": 3, "sha256": _digest(run()), "run": run()}))
    assert len(Journal.open(path, IDENTITY, resume=True).rounds) == 2
