"""Whatever is handed over as data gives windows or a sentence: no other error."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from prunecomp.data.files import SUFFIXES
from prunecomp.data.sources import read_documents, read_source
from prunecomp.data.windows import Windows, consecutive_windows, draw_documents, draw_windows, loose_windows
from prunecomp.errors import PrunecompError

VOCABULARY = 120
SOAK = bool(os.environ.get("PRUNECOMP_SOAK"))
fuzzed = settings(
    max_examples=3000 if SOAK else 150,
    derandomize=not SOAK,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def letters(text: str) -> list[int]:
    text.encode()  # as tokenizers do
    return [ord(c) % 128 for c in text]


def survive(source: Any) -> None:
    """Read it in every way that data is read."""
    for seqlen in (2, 7):
        with suppress(PrunecompError):
            tokens = read_source(source, letters, VOCABULARY)
            whole(draw_windows(tokens, 3, seqlen, seed=0))
            whole(consecutive_windows(tokens, seqlen))
        with suppress(PrunecompError):
            whole(draw_documents(read_documents(source, letters, VOCABULARY), 2, seqlen, seed=0))
        with suppress(PrunecompError):
            whole(loose_windows(source, VOCABULARY, 64))


def whole(windows: Windows) -> None:
    assert windows.count > 0
    assert 0 <= int(windows.tokens.min()) <= int(windows.tokens.max()) < VOCABULARY


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["text", "id", ""]), inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries({"text": st.text(max_size=20)}) | json_values


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Bytes as files have them: noise, text, JSON, arrays; whole, packed, cut, and with a byte changed."""
    kind = draw(st.sampled_from(["noise", "text", "lines", "array", "npy", "npz"]))
    if kind == "noise":
        content = draw(st.binary(max_size=60))
    elif kind == "text":
        content = draw(st.text(max_size=60)).encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])))
    elif kind == "lines":
        content = "\n".join(json.dumps(value) for value in draw(st.lists(entries, max_size=4))).encode()
    elif kind == "array":
        content = json.dumps(draw(st.lists(entries, max_size=4)), indent=draw(st.sampled_from([None, 1]))).encode()
    else:
        file = io.BytesIO()
        some = draw(arrays.arrays(draw(arrays.scalar_dtypes()), draw(arrays.array_shapes(min_dims=0, max_side=9))))
        (np.save if kind == "npy" else np.savez)(file, some)
        content = file.getvalue()
    for pack in draw(st.lists(st.sampled_from([gzip.compress, bz2.compress, lzma.compress]), max_size=2)):
        content = pack(content)
    content = bytearray(content[: draw(st.none() | st.integers(0, max(1, len(content))))])
    for _ in range(draw(st.integers(0, 2))):
        if content:
            content[draw(st.integers(0, min(len(content), 200) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@fuzzed
@given(content=contents(), suffix=st.sampled_from(["", *SUFFIXES, ".jsonl.gz", ".npy.xz", ".py"]))
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    survive(path)
    survive(f"c4-validation={path}")


@fuzzed
@given(
    arrays.arrays(
        arrays.scalar_dtypes() | arrays.unicode_string_dtypes() | arrays.byte_string_dtypes(),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
    )
    | st.lists(st.integers(-3, VOCABULARY + 3), max_size=20)
    | st.lists(st.lists(st.integers(-1, VOCABULARY), max_size=5), max_size=4)
    | json_values.filter(lambda value: not isinstance(value, str))
    | st.binary(max_size=9)
)
def test_any_value_is_read_or_refused(value: Any) -> None:
    survive(value)


@fuzzed
@given(name=st.text(max_size=40).filter(lambda name: not name.strip(".").isidentifier()))
def test_any_name_is_read_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that could be a dataset's is asked of a library that has none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prunecomp.data.protocols._datasets", lambda purpose: None)
    survive(name)
    survive(f"wikitext2={name}")
