"""Where BOS stands: in every window, or where the tokenizer puts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import prunecomp
from prunecomp.errors import OptionError
from prunecomp.model.source import open_source
from prunecomp.pruning.inputs import calibration_windows, evaluation_windows
from tests.models import build

WORDS = {f"w{i}": i for i in range(3, 60)}
BOS = 1


def tokenizer(*, adds: bool, knows: bool = True) -> Any:
    """One of words; it may know a BOS, and put it before a text by itself."""
    made = Tokenizer(WordLevel({"?": 0, "<s>": BOS, "</s>": 2, **WORDS}, unk_token="?"))
    made.pre_tokenizer = Whitespace()
    if adds:
        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?", **({"bos_token": "<s>"} if knows else {}))


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(" ".join(f"w{3 + (7 * i + j) % 57}" for j in range(9)) for i in range(40)))
    return file


KINDS = {
    "adds it": (tokenizer(adds=True), "each"),
    "knows it": (tokenizer(adds=False), "start"),
    "has none": (tokenizer(adds=False, knows=False), "start"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_auto_is_each_where_the_tokenizer_adds_bos_by_itself(kind: str, model: Any, text: Path) -> None:
    made, expected = KINDS[kind]
    model_source = open_source(model, dtype="auto", device="auto", tokenizer=made, allow_pickle=False)
    for windows in (calibration_windows(model_source, text, 6, 12, 0), evaluation_windows(model_source, text, 12)):
        assert windows.bos == expected
        assert windows.tokens.shape[1] == 12
        begins = windows.tokens[:, 0] == BOS
        assert bool(begins.all()) if expected == "each" else int(begins.sum()) <= 1
        assert not bool((windows.tokens[:, 1:] == BOS).any()), "it is never predicted"


def test_each_window_holds_the_text_that_follows_the_last(model: Any, text: Path) -> None:
    made, _ = KINDS["adds it"]
    model_source = open_source(model, dtype="auto", device="auto", tokenizer=made, allow_pickle=False)
    ids = made(text.read_text())["input_ids"]
    windows = evaluation_windows(model_source, text, 12, "each")
    assert windows.tokens[:, 1:].flatten().tolist() == ids[1:][: windows.count * 11]
    start = evaluation_windows(model_source, text, 12, "start")
    assert start.tokens.flatten().tolist() == ids[: start.count * 12]
    # The same ids in an array are the same windows.
    assert torch.equal(evaluation_windows(model_source, np.asarray(ids), 12).tokens, windows.tokens)


def test_documents_begin_with_it_once(model: Any, text: Path) -> None:
    for kind in ("adds it", "knows it"):
        model_source = open_source(model, dtype="auto", device="auto", tokenizer=KINDS[kind][0], allow_pickle=False)
        windows = calibration_windows(model_source, text, 8, 6, 0, documents=True, bos="each")
        assert windows.tokens.shape == (8, 6)
        assert (windows.tokens == BOS).sum(dim=1).tolist() == [1] * 8
        assert bool((windows.tokens[:, 0] == BOS).all())


def test_protocols_and_official_parity_are_as_published(model: Any, text: Path) -> None:
    made, _ = KINDS["adds it"]
    model_source = open_source(model, dtype="auto", device="auto", tokenizer=made, allow_pickle=False)
    assert evaluation_windows(model_source, f"wikitext2-test={text}", 12).bos == "start"
    assert evaluation_windows(model_source, f"wikitext2-test={text}", 12, "each").bos == "each"
    options: dict[str, Any] = {"samples": 4, "seqlen": 12, "tokenizer": made}
    official = prunecomp.prune(model, 1, text, parity="official", **options, preset="paper")
    assert official.record()["calibration"]["bos"] == "start"
    assert (
        prunecomp.prune(model, 1, text, parity="official", bos="each", **options, preset="paper").calibration.bos
        == "each"
    )


def test_each_is_refused_where_it_cannot_be(model: Any, text: Path) -> None:
    options: dict[str, Any] = {"samples": 4, "seqlen": 12, "bos": "each"}
    with pytest.raises(OptionError, match="no tokenizer with a BOS token; use --bos start"):
        prunecomp.score(model, text, tokenizer=KINDS["has none"][0], **options)
    rows = np.full((4, 12), 5)
    with pytest.raises(OptionError, match="windows already and is taken as it stands"):
        prunecomp.score(model, rows, tokenizer=KINDS["adds it"][0], **options)
    with pytest.raises(OptionError, match="--bos never: choose auto, each, start"):
        prunecomp.evaluate(model, text, bos="never")


def test_every_function_takes_it_and_the_record_and_the_card_tell(model: Any, text: Path, tmp_path: Path) -> None:
    made, _ = KINDS["knows it"]
    options: dict[str, Any] = {"samples": 4, "seqlen": 12, "tokenizer": made}
    assert prunecomp.evaluate(model, text, seqlen=12, tokenizer=made, bos="each") != prunecomp.evaluate(
        model, text, seqlen=12, tokenizer=made
    )
    for job in (prunecomp.score, prunecomp.collect, prunecomp.pruner_for):
        job(model, text, bos="each", **options)
    compared = prunecomp.compare(model, [1], text, eval={"a": text}, bos="each", **options)
    assert {compared.calibration.bos, *(one.bos for one in compared.texts)} == {"each"}
    result = prunecomp.prune(model, 1, text, eval=text, bos="each", **options, preset="paper")
    out = result.save(tmp_path / "out")
    record = json.loads((out / "prunecomp.json").read_text())
    assert record["options"]["bos"] == record["calibration"]["bos"] == record["perplexity"]["bos"] == "each"
    assert "4 windows of 12 tokens, each from BOS on" in (out / "README.md").read_text()
