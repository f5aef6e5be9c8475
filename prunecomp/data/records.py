"""Records, as files, tables and programs hold them, and what of each is read: a text, a conversation, or token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from typing import Any, TypeGuard

import numpy as np
import torch

from prunecomp.errors import DataError
from prunecomp.io.plain import parse_json

IDS, MASK = "input_ids", "attention_mask"
CHATS = ("messages", "conversations")
NAMED = ("text", *CHATS, IDS)
"""Fields that are read by themselves, the first of them that a record has."""
PAIRS = (
    ("prompt", "response"), ("prompt", "completion"), ("instruction", "output"), ("instruction", "response"),
    ("question", "answer"),
)  # fmt: skip
"""What a user said and what was answered, in two fields."""
KNOWN = tuple(dict.fromkeys([*NAMED, MASK, "input", *(field for pair in PAIRS for field in pair)]))
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
"""What conversations call a role, and what chat templates do."""
LARGEST_ID = 2**31
MASKED = "a masked array cannot be read as token ids: give rows with negative ids where they are padded"


@dataclass(frozen=True)
class Chat:
    """One conversation, each message an object with ``role`` and ``content``, as chat templates take them."""

    messages: list[dict[str, Any]]


Document = str | Chat | np.ndarray
"""A text, a conversation, or the token ids [tokens] of one sample."""
Content = np.ndarray | list[str] | list[Chat] | str
"""What a source holds: token ids [T], or [N, S] with negative ids behind the end of a row; documents; or one text."""


def gathered(documents: Iterable[Document], name: str, most: int | None = None) -> Content:
    """Documents of one kind, no more than ``most``. Raises :class:`DataError` where there are several kinds."""
    try:
        held = list(islice(documents, most))
    except RecursionError:
        raise DataError(f"{name} holds itself, or lists in too many others") from None
    kinds = {type(document) for document in held}
    if len(kinds) > 1:
        words = {str: "texts", Chat: "conversations", np.ndarray: "token ids"}
        raise DataError(f"{name} holds {' and '.join(sorted(words[kind] for kind in kinds))}: give one kind of them")
    return padded(held) if kinds == {np.ndarray} else held  # type: ignore[arg-type, return-value]


def padded(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of any length as int64 [N, S], with -1 behind the end of the shorter ones."""
    table = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


def documents_of(value: Any, place: str, field: str | None = None) -> Iterator[Document]:
    """The documents in a record, a batch of records, or the value of a field; ``place`` says in errors where it stands.

    Without a ``field`` the first of :data:`NAMED` is read, or a pair of :data:`PAIRS` as a conversation. What a mask
    takes out, or a negative id, is no part of a row; it may stand at either end. Raises :class:`DataError`.
    """
    if isinstance(value, str):
        yield checked_text(value, place)
    elif isinstance(value, Mapping):
        yield from _documents_of_record(value, place, field)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        yield from documents_of(value.tolist(), place, field)
    elif isinstance(value, torch.Tensor | np.ndarray) or is_row(value):
        yield from rows_of(value, None, place)
    elif is_conversation(value):
        yield _chat(value, place)
    elif isinstance(value, list | tuple) and value:
        # Of a loader or a data set, (ids, mask), (ids, labels) or (ids, labels, mask): the others are no more samples.
        if isinstance(value, tuple) and len(value) > 1 and all(_is_array(each) for each in value):
            ids, others = value[0], value[1:] if value[0].ndim >= 2 or len(value) == 3 else value[1:2]
            mask = next((each for each in others if _is_mask(ids, each)), None)
            if mask is not None or ids.ndim >= 2 or _is_labels(ids, others[0]):
                yield from rows_of(ids, mask, place)
                return
        for number, each in enumerate(value):
            yield from documents_of(each, f"{place}[{number}]" if "[" in place else place, field)
    else:
        raise DataError(f"{place}: {expected(field)}, not {shown(value)}")


def _documents_of_record(record: Mapping[Any, Any], place: str, field: str | None) -> Iterator[Document]:
    if field is None:
        pair = next((pair for pair in PAIRS if all(record.get(name) is not None for name in pair)), None)
        field = next((name for name in NAMED if record.get(name) is not None), None)
        if field is None and pair is not None:
            yield from _answered(record, pair, place)
            return
    value = None if field is None else unboxed(record.get(field))
    if isinstance(value, str) and field != "text":
        value = _told(value, field, place)
    elif isinstance(value, list | tuple) and field != "text" and all(isinstance(each, str) for each in value):
        value = [_told(each, field, place) for each in value]  # a column
    if field == IDS and value is not None:
        yield from rows_of(value, record.get(MASK), place)
    elif value is None or isinstance(value, Mapping | int | float):
        remedy = "" if field is not None else "; another field is named behind the file, as in FILE:FIELD"
        named = next((name for name in (field, *NAMED) if name in record), None)
        what = shown(record) if named is None else f'one whose "{named}" is {shown(record[named])}'
        raise DataError(f"{place}: {expected(field)}, not {what}{remedy}")
    else:
        yield from documents_of(value, f'{place}, "{field}"', None)


def _told(value: str, field: str | None, place: str) -> Any:
    """A conversation that stands in a cell as JSON; in a field of another name it may be a text too."""
    try:
        held = parse_json(value, f'{place}, "{field}"', DataError, expected(field))
    except DataError:
        held = None
    if is_conversation(held):
        return held
    if field in CHATS:
        raise DataError(f'{place}: {expected(None)}, not one whose "{field}" is {shown(value)}')
    return value


def _answered(record: Mapping[Any, Any], pair: tuple[str, str], place: str) -> Iterator[Document]:
    asked, answer = (record[name] for name in pair)
    if isinstance(asked, list | tuple) and isinstance(answer, list | tuple) and not is_conversation(asked):
        rows = zip(asked, answer, record.get("input") or [None] * len(asked), strict=False)
        for question, reply, more in rows:  # columns of a batch
            yield from _answered({pair[0]: question, pair[1]: reply, "input": more}, pair, place)
        return
    more = record.get("input")
    if isinstance(asked, str) and isinstance(more, str) and more.strip():
        asked = f"{asked}\n\n{more}"
    before = asked if is_conversation(asked) else [{"role": "user", "content": asked}]
    after = answer if is_conversation(answer) else [{"role": "assistant", "content": answer}]
    yield _chat([*before, *after], place)


def is_conversation(value: Any) -> TypeGuard[list[Any]]:
    """Whether these are the messages of one conversation."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(each, Mapping) and ("role" in each or "from" in each) for each in value)
    )


def _chat(messages: Iterable[Mapping[str, Any]], place: str) -> Chat:
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
            content = "".join(str(part["text"]) for part in content)
        if not isinstance(role, str) or not (isinstance(content, str) or message.get("tool_calls")):
            raise DataError(
                f'{place}, message {number}: expected an object like {{"role": "user", "content": "..."}}, not '
                f"{shown(message)}"
            )
        rest = {key: each for key, each in message.items() if key not in ("from", "value") and each is not None}
        text = checked_text(content, place) if isinstance(content, str) else content
        turns.append({**rest, "role": ROLES.get(role, role), "content": text})
    return Chat(turns)


def checked_text(text: str, place: str) -> str:
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"{place} holds half of a surrogate pair, which is no character")
    return text


def is_row(value: Any) -> bool:
    """Whether this is a list of whole numbers."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(each, Integral) and not isinstance(each, bool) for each in value)
    )


def rows_of(ids: Any, mask: Any, place: str) -> Iterator[np.ndarray]:
    """Token ids [tokens], or [N, S], or rows of any lengths, as rows without what the ``mask`` of the same shape takes
    out at either end, or is negative there. Rows without a token are passed over, as texts without a word are. Raises
    :class:`DataError` for padding inside of a row."""
    ids, mask = unboxed(ids), unboxed(mask)
    if getattr(ids, "shape", None) == (0,):
        return
    if isinstance(ids, list | tuple) and not is_row(ids):
        masks = mask if isinstance(mask, list | tuple) else [None] * len(ids) if mask is None else list(mask)
        if len(masks) != len(ids):
            raise DataError(f"{place}: {IDS} has {len(ids)} rows, and {MASK} {len(masks)}")
        for row, kept in zip(ids, masks, strict=True):
            yield from rows_of(row, kept, place)
        return
    table, kept = _integers(ids, IDS, place), None if mask is None else _integers(mask, MASK, place)
    if kept is not None and kept.shape != table.shape:
        raise DataError(f"{place}: {IDS} is of shape {table.shape}, and {MASK} of {kept.shape}: give them alike")
    real = table >= 0 if kept is None else kept != 0
    for row, inside in zip(np.atleast_2d(table), np.atleast_2d(real), strict=True):
        places = np.flatnonzero(inside)
        if not len(places):
            raise DataError(f"{place}: a row is nothing but padding, and holds nothing to run: leave it out")
        row = row[places[0] : places[-1] + 1]
        if len(places) != len(row) or row.min() < 0:
            raise DataError(
                f"{place}: a row has padding between its tokens; negative ids, and what {MASK} takes out, must stand "
                "at the ends of a row"
            )
        yield row


def _integers(value: Any, what: str, place: str) -> np.ndarray:
    """int64 [T] or [N, S]."""
    if np.ma.is_masked(value):
        raise DataError(f"{place}: {MASKED}")
    try:
        array = _as_numpy(value)
    except Exception as error:  # tensors without data, objects that promise an array and have none
        raise DataError(f"{place}: {what} cannot be read ({error})") from None
    if array.ndim == 3 and array.shape[1] == 1:  # a loader of windows that are batches of one
        array = array[:, 0]
    kinds = "iub" if what == IDS else "iubf"
    if array.ndim not in (1, 2) or array.dtype.kind not in kinds or not array.size:
        raise DataError(
            f"{place}: {what} must be integers of shape [T] or [N, S], not {array.dtype} of shape {array.shape}"
        )
    if array.dtype.kind == "b" and what == IDS:
        raise DataError(f"{place}: {what} holds truth values where token ids belong")
    if array.max() > LARGEST_ID:
        raise DataError(f"{place}: {what} holds {array.max()}, which is no id of a token")
    return array.astype(np.int64)


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray) and value.ndim >= 1


def _as_numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value  # which numpy has not
    return np.asarray(value)


def unboxed(value: Any) -> Any:
    """An array of objects or of texts as a list; what is none, as it is."""
    return value.tolist() if isinstance(value, np.ndarray) and value.dtype.kind in "OU" and value.ndim else value


def is_batch(value: Any) -> bool:
    """Whether these are the parts of one batch of rows, as a loader gives it, and not two or three batches."""
    return (
        isinstance(value, list | tuple)
        and len(value) in (2, 3)
        and all(_is_array(each) and each.ndim >= 2 and each.shape == value[0].shape for each in value)
        and any(_is_mask(value[0], each) or _is_labels(value[0], each) for each in value[1:])
    )


def _alike(*pair: Any) -> tuple[np.ndarray, ...] | None:
    """Both as arrays, where they are of one shape, and can be read."""
    try:
        arrays = tuple(map(_as_numpy, pair))
    except (TypeError, RuntimeError):  # told where they are read as ids
        return None
    return arrays if arrays[0].shape == arrays[1].shape else None


def _is_mask(ids: Any, mask: Any) -> bool:
    """Whether it is of the shape of the ids, and zeros and ones."""
    both = _alike(ids, mask)
    return both is not None and bool(np.isin(both[1], (0, 1)).all()) and not bool(np.isin(both[0], (0, 1)).all())


def _is_labels(ids: Any, labels: Any) -> bool:
    """Whether they are the ids, or for each the next one as training loops shift them, but for what is negative."""
    both = _alike(ids, labels)
    if both is None:
        return False
    first, second = both
    if ((first == second) | (second < 0)).all():
        return True
    following, wanted = first[..., 1:], second[..., :-1]
    least = LEAST_SHIFTED if (second >= 0).all() else 1
    return int((following == wanted).sum()) >= least and bool(((following == wanted) | (wanted < 0)).all())


LEAST_SHIFTED = 3
"""Tokens that must follow one another in two rows for one to be the other's labels, and not two samples alike; one
where some are negative, as labels have them."""


def expected(field: str | None) -> str:
    return f'expected an object like {{"{field or "text"}": "..."}}' + (
        "" if field else ' or {"messages": [{"role": "user", "content": "..."}]}'
    )


def shown(value: Any) -> str:
    words = f"one with {list(value)}" if isinstance(value, Mapping) else repr(value)
    return words if len(words) <= 80 else f"{words[:77]}..."
