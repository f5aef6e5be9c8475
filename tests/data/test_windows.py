"""Sources and windows: deterministic, within bounds, and refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecomp.data.sources import TokenSource, read_source
from prunecomp.data.windows import consecutive_windows, draw_windows
from prunecomp.errors import DataError


def letters(text: str) -> list[int]:
    return [ord(c) % 97 for c in text]


@given(st.integers(2, 400), st.integers(1, 20), st.integers(2, 40), st.integers(0, 2**32))
def test_windows_are_slices_of_the_source(total: int, samples: int, seqlen: int, seed: int) -> None:
    source = TokenSource(np.arange(total), "numbers")
    if total < seqlen:
        with pytest.raises(DataError, match="too short for one window"):
            draw_windows(source, samples, seqlen, seed)
        return
    windows = draw_windows(source, samples, seqlen, seed)
    again = draw_windows(source, samples, seqlen, seed)
    assert windows.tokens.shape == (samples, seqlen)
    assert windows.digest == again.digest
    assert (windows.tokens.diff(dim=1) == 1).all()
    if total // seqlen >= samples:
        assert len(windows.tokens.unique()) == samples * seqlen, "enough text, so no token is drawn twice"


def test_the_share_of_a_protocol_bounds_the_windows() -> None:
    windows = draw_windows(TokenSource(np.arange(1000), "numbers", share=0.9), 50, 10, seed=3)
    assert int(windows.tokens.max()) < 900


def test_another_seed_draws_other_windows() -> None:
    source = TokenSource(np.arange(5000), "numbers")
    assert draw_windows(source, 8, 16, seed=0).digest != draw_windows(source, 8, 16, seed=1).digest


def test_text_jsonl_npy_and_arrays_give_the_same_tokens(tmp_path: Path) -> None:
    documents = ["one fine day", "another line\nand more"]
    text = "\n\n".join(documents)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": d, "id": 1}) for d in documents) + "\n")
    np.save(tmp_path / "a.npy", np.asarray(letters(text), dtype=np.uint16))
    expected = letters(text)
    for source in (tmp_path / "a.txt", str(tmp_path / "a.jsonl"), tmp_path / "a.npy", np.asarray(expected)):
        assert read_source(source, letters, 97).tokens.tolist() == expected


def test_a_two_dimensional_array_is_taken_as_it_stands() -> None:
    array = np.random.default_rng().integers(0, 50, (3, 17))
    source = read_source(array, None, 50)
    assert draw_windows(source, samples=99, seqlen=5, seed=0).tokens.tolist() == array.tolist()
    assert consecutive_windows(source, 5).tokens.tolist() == array.tolist()


def test_a_dataset_is_read_from_a_local_folder(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "first"}\n{"text": "second"}\n')
    assert read_source(str(folder), letters, 97).tokens.tolist() == letters("first\n\nsecond")


def test_consecutive_windows_drop_the_remainder() -> None:
    assert consecutive_windows(TokenSource(np.arange(25), "numbers"), 10).tokens.tolist() == [
        list(range(10)),
        list(range(10, 20)),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"body": 1}\n', r"a\.jsonl, line 2"),
        ("a.jsonl", b"not json\n", r"a\.jsonl, line 1"),
        ("a.txt", b"\xff\xfe\xfa", "not UTF-8"),
        ("a.npy", b"nonsense", "not a readable .npy"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_source(tmp_path / name, letters, 97)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(9), "must be integers"),
        (np.zeros((2, 2, 2), dtype=int), "must be integers of shape"),
        (np.asarray([3, 97]), "the vocabulary from 0 to 96"),
        (np.asarray([-1, 5]), "run from -1"),
    ],
)
def test_bad_arrays_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_source(array, None, 97)


def test_a_missing_file_is_not_taken_for_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_source(tmp_path / "missing.txt", letters, 97)


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(DataError, match="no tokenizer"):
        read_source(tmp_path / "a.txt", None, 97)
