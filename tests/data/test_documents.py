"""Texts and conversations, in whatever they are handed over, and several sources in one."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

import prunecomp
from prunecomp.data.mixture import allotted, parts_of
from prunecomp.data.sources import read, read_documents, read_source
from prunecomp.data.windows import consecutive_windows
from prunecomp.errors import DataError, OptionError, PrunecompWarning
from prunecomp.model.source import InMemorySource
from prunecomp.pruning.inputs import calibration_windows, evaluation_windows
from tests.conftest import REFERENCE_MODEL
from tests.data.test_containers import hugging
from tests.situations.data import command, model, save

TEXTS = [f"Text {number} is of several words, {'and longer ' * number}indeed." for number in range(20)]
CHATS = [
    [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {'so ' * n}many."}]
    for n in range(9)
]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"


def letters(text: str) -> list[int]:
    return [ord(c) % 97 for c in text]


def lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def table(delimiter: str, field: str = "text", cells: list[str] = TEXTS) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows([["id", field], *([number, text] for number, text in enumerate(cells))])
    return file.getvalue().encode()


def parquet(columns: dict[str, list[Any]]) -> bytes:
    arrow, written = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    written.write_table(arrow.table(columns), file)
    return file.getvalue()


BODIES = [{"body": text, "id": 3} for text in TEXTS]
FILES: dict[str, Callable[[], bytes]] = {
    "a.csv": lambda: table(","),
    "a.tsv": lambda: table("\t"),
    "a.csv.gz": lambda: gzip.compress(table(",")),
    "a.csv:body": lambda: table(",", "body"),
    "strings.json": lambda: json.dumps(TEXTS).encode(),
    "columns.json": lambda: json.dumps({"text": TEXTS}).encode(),
    "a.jsonl:body": lambda: lines(BODIES),
    "a.jsonl.gz:body": lambda: gzip.compress(lines(BODIES)),
    "a.json:body": lambda: json.dumps(BODIES).encode(),
    "a.parquet:body": lambda: parquet({"body": TEXTS, "id": [0] * len(TEXTS)}),
    "a.parquet": lambda: parquet({"text": TEXTS, "id": [0] * len(TEXTS)}),
}


@pytest.mark.parametrize("name", FILES)
def test_texts_are_the_same_in_every_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name.partition(":")[0]).write_bytes(FILES[name]())
    assert read(str(tmp_path / name)).content == TEXTS
    protocol = f"wikitext2={tmp_path / name}"
    assert read_source(protocol, letters, 97).tokens.tolist() == letters("\n\n".join(TEXTS))


OBJECTS: dict[str, Callable[[], Any]] = {
    "a list": lambda: TEXTS,
    "an array": lambda: np.array(TEXTS),
    "a generator": lambda: iter(TEXTS),
    "a list of dicts": lambda: [{"text": text} for text in TEXTS],
    "a dict of columns": lambda: {"text": TEXTS, "id": list(range(20))},
    "a Dataset": lambda: hugging({"id": list(range(20)), "text": TEXTS}),
    "a column of a Dataset": lambda: hugging({"body": TEXTS})["body"],
    "a frame": lambda: pytest.importorskip("pandas").DataFrame({"id": list(range(20)), "text": TEXTS}),
    "an Arrow table": lambda: pytest.importorskip("pyarrow").table({"text": TEXTS}),
    "a loader": lambda: DataLoader(TEXTS, batch_size=3),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("container", OBJECTS)
def test_texts_are_the_same_in_every_object(container: str) -> None:
    assert read(OBJECTS[container]()).content == TEXTS


def test_a_folder_of_texts_is_its_texts_in_order(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS[:3]):
        (tmp_path / "part").mkdir(exist_ok=True)
        (tmp_path / f"{'part/' if number else ''}{number}.txt").write_text(text)
    (tmp_path / "README.md").write_text("no part of it")
    (tmp_path / ".hidden.txt").write_text("nor this")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "message.txt").write_text("nor what lies in a hidden folder")
    assert read(tmp_path).content == TEXTS[:3]
    (tmp_path / "part" / "2.txt").rename(tmp_path / "part" / "2.jsonl.txt")
    (tmp_path / "part" / "3.txt").write_bytes(lines(BODIES[:1]).replace(b"body", b"text"))
    with pytest.raises(DataError, match=r"3\.txt is none: give that file by itself"):
        read(tmp_path)


def test_a_data_set_on_disk_is_read(tmp_path: Path) -> None:
    hugging({"text": TEXTS}).save_to_disk(tmp_path / "disk")
    assert read(tmp_path / "disk").content == TEXTS


def test_a_text_is_told_from_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("One text of more than three words.", "two\nlines", "\u6587" * 400):
        assert read_source(text, letters, 97).tokens.tolist() == letters(text)
    (tmp_path / "a file of four words").write_text("and what it holds")
    assert read("a file of four words").content == "and what it holds"
    for name in ("nosuch", "my data", "my own new text.txt", "folder/of/nothing", "nosuch.jsonl:body"):
        with pytest.raises(DataError, match=r"no such file; what has no file is a protocol \(wikitext2, .*as in"):
            read(name)


def from_human(chat: list[dict[str, str]]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in chat]}


ANSWERS = [{"prompt": chat[0]["content"], "response": chat[1]["content"]} for chat in CHATS]
TOLD = [json.dumps(chat) for chat in CHATS]
CONVERSATIONS: dict[str, Callable[[], Any]] = {
    "a.jsonl": lambda: lines([{"messages": chat} for chat in CHATS]),
    "shared.json": lambda: json.dumps([from_human(chat) for chat in CHATS]).encode(),
    "a.jsonl:dialogue": lambda: lines([{"dialogue": chat, "text": "no"} for chat in CHATS]),
    "answers.jsonl.gz": lambda: gzip.compress(lines(ANSWERS)),
    "answers.parquet": lambda: parquet({name: [a[name] for a in ANSWERS] for name in ("prompt", "response")}),
    "a.parquet": lambda: parquet({"messages": CHATS}),
    "cells.csv": lambda: table(",", "messages", TOLD),
    "named.csv:dialogue": lambda: table(",", "dialogue", TOLD),
    "a frame": lambda: pytest.importorskip("pandas").read_parquet(io.BytesIO(parquet({"messages": CHATS}))),
    "lines of columns.jsonl": lambda: lines([{"messages": TOLD[:4]}, {"messages": TOLD[4:]}]),
    "a frame of JSON": lambda: pytest.importorskip("pandas").DataFrame({"messages": TOLD}),
    "an Arrow table of JSON": lambda: pytest.importorskip("pyarrow").table({"messages": TOLD}),
    "columns of JSON": lambda: {"messages": TOLD},
    "arrays of JSON": lambda: {"messages": np.array(TOLD)},
    "lists": lambda: CHATS,
    "dicts": lambda: [{"messages": chat} for chat in CHATS],
    "columns": lambda: {name: [a[name] for a in ANSWERS] for name in ("prompt", "response")},
    "Dataset": lambda: hugging({"messages": CHATS}),
    "Dataset of answers": lambda: hugging({name: [a[name] for a in ANSWERS] for name in ("prompt", "response")}),
    "generator": lambda: ({"messages": chat} for chat in CHATS),
}


@pytest.fixture(scope="module")
def chatting() -> Any:
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE_MODEL)
    tokenizer.chat_template = TEMPLATE
    return InMemorySource(model(), tokenizer)


@pytest.mark.parametrize("container", CONVERSATIONS)
def test_conversations_go_through_the_chat_template(tmp_path: Path, chatting: Any, container: str) -> None:
    source = CONVERSATIONS[container]()
    if isinstance(source, bytes):
        (tmp_path / container.partition(":")[0]).write_bytes(source)
        source = str(tmp_path / container)
    expected = [
        chatting.tokenize("".join(f"<{turn['role']}>{turn['content']}\n" for turn in chat))[:30] for chat in CHATS
    ]
    windows = evaluation_windows(chatting, source, 30)
    assert windows.lengths is not None
    got = [row[:n].tolist() for row, n in zip(windows.tokens, windows.lengths.tolist(), strict=True)]
    assert got == expected
    if container != "generator":
        with pytest.warns(PrunecompWarning, match="has 9 documents of two tokens or more, fewer than --samples 20"):
            drawn = calibration_windows(chatting, source, 20, 30, 0)
        assert sorted(drawn.each_length.tolist()) == sorted(map(len, expected))


def test_conversations_without_a_template_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"messages": chat} for chat in CHATS]))
    result = command("score", save(model(), tmp_path / "m"), "--calibration", tmp_path / "a.jsonl", "--seqlen", 8)
    assert result.exit_code == 4
    assert "holds conversations, and the tokenizer has no chat template" in result.stderr
    with pytest.raises(DataError, match="is conversations, and the model has no tokenizer"):
        prunecomp.score(model(), CHATS)


def test_a_whole_conversation_is_one_sample() -> None:
    assert len(read_documents(CHATS[0], Tokens()).documents) == 1  # type: ignore[arg-type]


class Tokens(prunecomp.data.sources.Tokenizer):
    """Of as many tokens as there are messages."""

    def __init__(self) -> None:
        super().__init__(lambda: None)

    def chat(self, chat: Any) -> list[int]:
        return [1] * len(chat.messages)


def test_several_sources_are_interleaved_by_their_weights(tmp_path: Path, chatting: Any) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS))
    (tmp_path / "chats.jsonl").write_bytes(lines([{"messages": chat} for chat in CHATS]))
    text, chats = tmp_path / "a.txt", tmp_path / "chats.jsonl"
    windows = calibration_windows(chatting, f"{text}:0.75 {chats}:0.25", 8, 16, 0)
    assert windows.kinds is not None
    assert windows.kinds.tolist() == [0, 0, 1, 0, 0, 0, 1, 0]
    assert windows.kind_names == (str(text), str(chats))
    alone = calibration_windows(chatting, text, 6, 16, 0)
    assert torch.equal(windows.tokens[windows.kinds == 0], alone.tokens)
    for same in ({text: 0.75, chats: 0.25}, [(text, 3), (chats, 1)], [f"{text}:3", f"{chats}:1"]):
        again = calibration_windows(chatting, same, 8, 16, 0)
        assert again.digest == windows.digest
        assert torch.equal(again.kinds, windows.kinds)  # type: ignore[arg-type]
    even = calibration_windows(chatting, [text, chats], 8, 16, 0)
    assert np.bincount(even.kinds).tolist() == [4, 4]  # type: ignore[arg-type]
    some = windows.shuffled(5).take(slice(0, 5))
    kind_of = {tuple(row.tolist()): kind for row, kind in zip(windows.tokens, windows.kinds.tolist(), strict=True)}
    assert [kind_of[tuple(row.tolist())] for row in some.tokens] == some.kinds.tolist()  # type: ignore[union-attr]
    assert evaluation_windows(chatting, [text, chats], 16).count == consecutive_windows(
        read_source(text, chatting.tokenize, 4096), 16
    ).count + len(CHATS)
    with pytest.raises(OptionError, match="a text to measure on has no weight"):
        evaluation_windows(chatting, f"{text}:0.75 {chats}:0.25", 16)


def test_weights_that_are_none_are_refused(chatting: Any) -> None:
    for weight in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="a weight is a number above 0"):
            parts_of({"a.txt": weight})
    for weights in (("", ""), (":-1", ":0.5"), (":nan", ":0.5"), (":1e-9", ":0.5"), (":0.5", "")):
        with pytest.raises(OptionError, match="each have a weight behind them, a number above 0"):
            parts_of(" ".join(f"{__file__}{weight}" for weight in weights))
    with pytest.raises(OptionError, match="there are 3 sources, and each gives at least one window"):
        allotted(2, [1.0, 1.0, 1.0])
    assert allotted(10, [1.0, 1.0, 1.0]) == [4, 3, 3]
    assert allotted(8, [100.0, 1.0, 1.0]) == [6, 1, 1]


def test_a_mixture_is_recorded(tmp_path: Path) -> None:
    folder = save(model(), tmp_path / "m")
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS))
    (tmp_path / "b.csv").write_bytes(table(","))
    source = f"{tmp_path / 'a.txt'}:0.75 {tmp_path / 'b.csv'}:0.25"
    out = tmp_path / "out"
    result = command(
        "prune", folder, "--layers", 1, "--calibration", source, "--samples", 8, "--seqlen", 8, "--out", out
    )
    assert result.exit_code == 0, result.stderr
    record = json.loads((out / "prunecomp.json").read_text())["calibration"]
    assert record["source"] == source
    assert record["sources"] == [
        {"source": str(tmp_path / "a.txt"), "windows": 6, "tokens": 48},
        {"source": str(tmp_path / "b.csv"), "windows": 2, "tokens": 16},
    ]
    assert "b.csv:0.25" in (out / "README.md").read_text().replace("\\", "")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}], "line 1: a row has padding between"),
        ([{"text": "a"}, {"messages": CHATS[0]}], "holds conversations and texts: give one kind of them"),
        ([{"messages": [{"content": "a"}]}], 'line 1, "messages".*expected an object like'),
        ([{"messages": [{"role": "user", "content": 3}]}], 'message 1: expected an object like {"role": "user"'),
        ([{"messages": "no conversation"}], 'line 1: expected an object like .*whose "messages" is .no conversation'),
        ([{"messages": [TOLD[0], "none"]}], 'line 1: expected an object like .*whose "messages" is .none'),
        ([{"messages": []}], "expected an object like"),
        ([{"prompt": "a", "response": 5}], 'message 2: expected an object like {"role": "user"'),
    ],
)
def test_records_that_are_none_are_named(tmp_path: Path, records: list[Any], message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(records))
    with pytest.raises(DataError, match=rf"a\.jsonl.*{message}" if "line" in message else message):
        read(tmp_path / "a.jsonl")
