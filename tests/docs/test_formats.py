"""Records and journals are as their schemas say, field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry, Resource

import prunecomp
from prunecomp.pruning import curve, journal, result
from tests.models import build, draw_tokens

SCHEMAS = Path(__file__).parents[2] / "docs" / "reference"
RECORD, JOURNAL, CURVE = (
    json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    for name in ("prunecomp", "journal", "curve")
)


def check(schema: dict[str, Any], document: Any) -> None:
    Draft202012Validator.check_schema(schema)
    resources = [(each["$id"], Resource.from_contents(each)) for each in (RECORD, JOURNAL)]
    Draft202012Validator(schema, registry=Registry().with_resources(resources)).validate(document)


def written(folder: Path) -> Any:
    return json.loads((folder / "prunecomp.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "options",
    [
        {"repair": "none"},
        {"compensation": "search", "metric": "ppl", "repair": "none"},
        {"repair": "joint", "ridge": 1.0},
        {"repair": "auto"},
        {"metric": "span", "compensation": "none", "repair": "none"},
        {"repair": "none", "layers": None, "target": "layers=4"},
        {"repair": "none", "layers": None, "target": "latency=0.67x"},
    ],
    ids=str,
)
def test_a_record_is_as_its_schema_says(options: dict[str, Any], tmp_path: Path, generator: Any) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    made = prunecomp.prune(model, calibration=tokens, eval=tokens, **{"layers": 2, **options})
    record = written(made.save(tmp_path / "out"))
    check(RECORD, record)
    assert set(record["options"]) == set(made.options.record())
    assert ("measuring latency" in record["cost"]["seconds"]) == (options.get("target") == "latency=0.67x")
    for field in ("format", "rounds", "removed", "fold_proofs"):
        with pytest.raises(ValidationError):
            check(RECORD, {name: value for name, value in record.items() if name != field})
    with pytest.raises(ValidationError):
        check(RECORD, {**record, "another": 1})


def test_a_record_without_verification_or_text_is_too(tmp_path: Path, generator: Any) -> None:
    model = build("llama")
    made = prunecomp.prune(model, 1, draw_tokens(model, generator), repair="none")
    check(RECORD, written(made.save(tmp_path / "out", verify=False)))


def test_a_journal_is_as_its_schema_says(tmp_path: Path, generator: Any) -> None:
    model, file = build("llama"), tmp_path / "journal.json"
    prunecomp.prune(model, 2, draw_tokens(model, generator), journal=file)
    kept = json.loads(file.read_text(encoding="utf-8"))
    check(JOURNAL, kept)
    assert len(kept["run"]["rounds"]) == 2


@pytest.mark.parametrize("options", [{"repair": "none"}, {"repair": "auto", "eval": "its own"}], ids=str)
def test_a_curve_is_as_its_schema_says(options: dict[str, Any], tmp_path: Path, generator: Any) -> None:
    model = build("llama")
    tokens = draw_tokens(model, generator)
    if "eval" in options:
        options = {**options, "eval": tokens}
    out = prunecomp.curve(model, [1, 3], tokens, **options).save(tmp_path / "out")
    kept = json.loads((out / "curve.json").read_text(encoding="utf-8"))
    check(CURVE, kept)
    with pytest.raises(ValidationError):
        check(CURVE, {**kept, "stops": []})
    for stop in kept["stops"]:
        check(RECORD, written(out / str(stop["layers"])))


def test_the_formats_have_the_numbers_of_the_code() -> None:
    assert RECORD["properties"]["format"] == {"const": result.FORMAT}
    assert CURVE["properties"]["format"] == {"const": curve.FORMAT}
    assert JOURNAL["properties"]["format"] == {"const": journal.FORMAT}
