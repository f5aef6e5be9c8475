"""Whatever data is handed over in, the same rows give the same windows, for calibration and for evaluation."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

import prunecomp
from prunecomp.data.in_memory import CHARACTERS
from prunecomp.data.sources import read, read_source
from prunecomp.data.windows import Windows, consecutive_windows, draw_windows
from prunecomp.errors import DataError, PrunecompWarning
from prunecomp.model.source import InMemorySource
from prunecomp.pruning.inputs import calibration_windows
from tests.situations.data import model

N, S, PAD = 6, 12, 7
ROWS = np.random.default_rng(3).integers(8, 97, (N, S))
LENGTHS = [12, 5, 9, 2, 12, 7]
RAGGED = [ROWS[i, :n] for i, n in enumerate(LENGTHS)]


def digest(source: Any) -> str:
    """Of all windows, however they are read: for evaluation and for calibration."""
    tokens = read_source(source, None, 97)
    windows = consecutive_windows(tokens, S)
    assert draw_windows(tokens, N, S, seed=0).digest == windows.digest
    return windows.digest


def batch(left: bool = False, ragged: bool = True, kind: Callable[[Any], Any] = torch.tensor) -> dict[str, Any]:
    """As a tokenizer pads: a pad token that is a token like others, told by the mask alone."""
    ids, mask = np.full((N, S), PAD), np.zeros((N, S), dtype=np.int64)
    for i, row in enumerate(RAGGED if ragged else ROWS):
        place = slice(S - len(row), None) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return {"input_ids": kind(ids), "attention_mask": kind(mask)}


def rows_of(many: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: value[i] for name, value in many.items()} for i in range(N)]


def halves(many: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: value[part] for name, value in many.items()} for part in (slice(0, 4), slice(4, None))]


class Rows(torch.utils.data.Dataset):
    """As torch has them: a length and an item by its number, without an end of its own."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, number: int) -> dict[str, Any]:
        return rows_of(batch())[number % N]


def hugging(columns: dict[str, list[Any]]) -> Any:
    return pytest.importorskip("datasets").Dataset.from_dict(columns)


IDS: dict[str, Callable[[], Any]] = {
    "an array with negative ids": lambda: np.where(batch(kind=np.array)["attention_mask"] > 0, ROWS, -1),
    "negative ids on the left": lambda: [[-1] * (S - len(row)) + row.tolist() for row in RAGGED],
    "a dict": batch,
    "a dict padded on the left": lambda: batch(left=True),
    "a dict of arrays": lambda: batch(kind=np.array),
    "a dict of lists": lambda: batch(kind=lambda table: table.tolist()),
    "a mask of truth values": lambda: {**batch(), "attention_mask": batch()["attention_mask"].bool()},
    "a dict with labels": lambda: {**batch(), "labels": torch.full((N, S), -100)},
    "a BatchEncoding": lambda: BatchEncoding(batch(left=True)),
    "a BatchEncoding of ragged lists": lambda: BatchEncoding({"input_ids": [row.tolist() for row in RAGGED]}),
    "a list of dicts": lambda: rows_of(batch()),
    "a list of batches": lambda: halves(batch(left=True)),
    "ragged lists": lambda: [row.tolist() for row in RAGGED],
    "a list of [1, S] tensors": lambda: [torch.tensor(row).unsqueeze(0) for row in RAGGED],
    "a tuple of [S] arrays": lambda: tuple(RAGGED),
    "a list of pairs with labels": lambda: [(torch.tensor(row)[None], torch.tensor(row)[None]) for row in RAGGED],
    "a loader of dicts": lambda: DataLoader(rows_of(batch()), batch_size=4),
    "a loader of [1, S] samples": lambda: DataLoader(
        [{name: value[None] for name, value in row.items()} for row in rows_of(batch())], batch_size=2
    ),
    "a loader of tensors and masks": lambda: DataLoader(TensorDataset(*batch().values()), batch_size=4),
    "a batch of a loader": lambda: next(iter(DataLoader(TensorDataset(*batch().values()), batch_size=N))),
    "a list of pairs with shifted labels": lambda: [
        (torch.tensor(row)[None], torch.tensor([*row[1:], 7])[None]) for row in RAGGED
    ],
    "a tuple of arrays, labels and the mask": lambda: (
        batch(kind=np.array)["input_ids"],
        np.full((N, S), -100),
        batch(kind=np.array)["attention_mask"],
    ),
    "samples with labels and masks": lambda: [
        (row["input_ids"], row["input_ids"], row["attention_mask"]) for row in rows_of(batch())
    ],
    "masks of bfloat16": lambda: (batch()["input_ids"], batch()["attention_mask"].bfloat16()),
    "a data set of torch": Rows,
    "rows of objects": lambda: np.array([row.tolist() for row in RAGGED], dtype=object),
    "objects in a dict": lambda: {"input_ids": np.array([row.tolist() for row in RAGGED], dtype=object)},
    "objects in dicts": lambda: [{"input_ids": row.astype(object)} for row in RAGGED],
    "rows and others without a token": lambda: [*(row.tolist() for row in RAGGED[:2]), [], *RAGGED[2:], torch.ones(0)],
    "a list of frames": lambda: [pytest.importorskip("pandas").DataFrame({"input_ids": RAGGED})],
    "a generator of batches": lambda: (half for half in halves(batch())),
    "a Dataset": lambda: hugging({name: value.tolist() for name, value in batch().items()}),
    "a Dataset of ragged rows": lambda: hugging({"input_ids": [row.tolist() for row in RAGGED]}),
    "a Dataset of tensors": lambda: hugging({name: v.tolist() for name, v in batch(True).items()}).with_format("torch"),
    "a Dataset with rows without a token": lambda: hugging({"input_ids": [[], *(row.tolist() for row in RAGGED), []]}),
    "a lazy column of a Dataset": lambda: {
        "input_ids": hugging({"input_ids": [row.tolist() for row in RAGGED]})["input_ids"]
    },
    "a streamed Dataset": lambda: hugging({"input_ids": [row.tolist() for row in RAGGED]}).to_iterable_dataset(),
}


@pytest.mark.parametrize("container", IDS)
def test_token_ids_are_the_same_rows_in_every_container(container: str) -> None:
    expected = Windows(
        torch.from_numpy(np.stack([np.pad(row, (0, S - len(row))) for row in RAGGED])), "", torch.tensor(LENGTHS)
    )
    assert digest(IDS[container]()) == expected.digest


@pytest.mark.parametrize(
    "whole",
    [
        ROWS, torch.tensor(ROWS), ROWS.tolist(), batch(ragged=False), DataLoader(torch.tensor(ROWS), batch_size=4),
        DataLoader(TensorDataset(torch.tensor(ROWS)), batch_size=4), [torch.tensor(row)[None] for row in ROWS],
        TensorDataset(torch.tensor(ROWS), torch.ones_like(torch.tensor(ROWS))), [(row, row) for row in ROWS],
        DataLoader(TensorDataset(torch.tensor(ROWS), torch.tensor(np.where(ROWS % 2, ROWS, -100))), batch_size=None),
        ROWS.astype(np.uint16), ROWS.astype(object), pytest.importorskip("pyarrow").array(ROWS.tolist()),
    ],
    ids=["array", "tensor", "lists", "dict", "loader", "loader of tuples", "list of tensors", "samples with masks",
         "samples with labels", "loader of samples with labels", "uint16", "objects", "Arrow"],
)  # fmt: skip
def test_rows_without_padding_have_no_lengths(whole: Any) -> None:
    assert digest(whole) == Windows(torch.tensor(ROWS), "").digest


def test_samples_that_share_a_few_tokens_are_no_labels() -> None:
    first, second = np.array([5, 6, 7]), np.array([6, 7, 9])
    tokens = read_source([(first, second)], None, 97)
    assert consecutive_windows(tokens, 3).tokens.tolist() == [first.tolist(), second.tolist()]


@pytest.mark.parametrize("left", [False, True])
def test_a_mask_enters_no_statistic(left: bool) -> None:
    """Scores and losses are those of each row alone, weighted by its tokens."""
    built = model()
    padded = prunecomp.collect(built, batch(left))
    alone = [prunecomp.collect(built, row[None]) for row in RAGGED]
    mean = sum(one.cosine * one.tokens for one in alone) / sum(LENGTHS)
    assert padded.tokens == sum(LENGTHS)
    np.testing.assert_allclose(padded.cosine, mean, atol=1e-6)  # float32 sums of another order
    losses = [np.log(prunecomp.evaluate(built, row[None])) * (len(row) - 1) for row in RAGGED]
    expected = sum(losses) / sum(len(row) - 1 for row in RAGGED)
    assert np.log(prunecomp.evaluate(built, batch(left))) == pytest.approx(expected, abs=1e-5)


def test_what_a_tokenizer_gives_of_one_text_is_sampled() -> None:
    ids = ROWS.flatten()
    for one in (
        {"input_ids": ids.tolist()},
        {"input_ids": ids.astype(object)},
        BatchEncoding({"input_ids": torch.tensor(ids)}),
        ids.astype(object),
    ):
        assert read_source(one, None, 97).tokens.tolist() == ids.tolist()


def test_a_generator_is_asked_for_no_more_than_is_needed() -> None:
    asked: list[int] = []

    def endless() -> Iterator[Any]:
        while True:
            asked.append(1)
            yield {"input_ids": torch.tensor(ROWS[:4])}

    model_source = InMemorySource(model(), None)
    assert calibration_windows(model_source, endless(), 7, None, 0).count == 7
    assert len(asked) == 2
    with pytest.warns(PrunecompWarning, match="the first 4 of its 6 samples are taken; .* as in samples=6"):
        assert calibration_windows(model_source, DataLoader(torch.tensor(ROWS), batch_size=3), 4, None, 0).count == 4
    texts = (asked.append(2) or "some words" for _ in iter(int, 1))  # type: ignore[func-returns-value]
    read(texts, 3, 10)
    assert asked.count(2) == -(-10 * CHARACTERS // len("some words"))


def test_a_generator_for_two_purposes_is_told() -> None:
    rows = iter(ROWS)
    with pytest.raises(DataError, match="is given twice, and can be read once"):
        prunecomp.prune(model(), 1, rows, eval=rows, preset="paper")


def test_too_little_text_is_said_with_how_often_it_is_used() -> None:
    with pytest.warns(
        PrunecompWarning, match=r"gives 72 tokens, and --samples 10 of --seqlen 12 take 120: .*1\.7 times"
    ):
        calibration_windows(InMemorySource(model(), None), ROWS.flatten(), 10, 12, 0)


def test_pairs_of_lists_are_two_rows() -> None:
    assert read_source(([5, 6, 7], [1, 1, 0]), None, 97).tokens.tolist() == [[5, 6, 7], [1, 1, 0]]


ITSELF: list[Any] = [[1, 2]]
ITSELF.append(ITSELF)
MASKED_ROWS = np.ma.array([[1, 2, 3]], mask=[[0, 0, 1]])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({1, 2}, "the set cannot be read as token ids: give integers .* as in \"text.txt\""),
        (io.StringIO("text"), "the StringIO cannot be read"),
        ({"train": hugging({"text": ["a"]})}, r"has \['train'\]: choose one, as in dataset\['train'\]"),
        ([{"body": "a"}], "expected an object like .*not one with .*FILE:FIELD"),
        ({"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1]]}, "input_ids has 2 rows, and attention_mask 1"),
        ({"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3)}, "must be integers of shape"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, "nothing but padding"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "padding between its tokens"),
        ([{"text": "a"}, {"text": None}], 'number 1: expected an object like .*not one whose "text" is None'),
        ([[], []], "is empty"),
        ([[1, 2], "three"], "holds texts and token ids"),
        ((row for row in [[1, 2], 1 / 2]), "number 1: expected an object"),
        ((1 // n for n in (1, 0)), "number 0: expected an object"),
        (([1 // n, 2] for n in (1, 0)), r"number 1, could not be had \(ZeroDivisionError"),
        ([{"text": b"hello"}], "not b'hello'"),
        ({"text": bytearray(b"hello")}, "not bytearray"),
        ([{"text": memoryview(b"hello")}], "not <memory"),
        ([1, 2**70], "must be integers of shape"),
        (np.array([1, 2**70], dtype=object), "must be integers of shape"),
        (ITSELF, "holds itself"),
        ({"input_ids": ITSELF}, "holds itself"),
        ({"input_ids": torch.zeros(0, dtype=torch.long)}, "this dict is empty"),
        ((torch.ones(2, 3).bfloat16(), torch.ones(2, 3).bfloat16()), "must be integers of shape"),
        ([(torch.ones(3).bfloat16(), torch.ones(3).bfloat16())], "must be integers of shape"),
        ([(torch.ones(3, device="meta"), torch.ones(3))], "cannot be read"),
        ({"input_ids": MASKED_ROWS}, "a masked array cannot be read"),
        ([{"input_ids": MASKED_ROWS[0]}], "a masked array cannot be read"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": MASKED_ROWS}, "a masked array cannot be read"),
        ([], "is empty"),
        (iter([]), "is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_what_can(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_source(source, None, 97)
