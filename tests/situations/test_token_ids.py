"""Ids that the model has no rows for are told with their token, wherever text becomes ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import prunecomp
from prunecomp.data.tokens import Tokenizer, token_ids
from prunecomp.errors import DataError, OptionError
from tests.conftest import REFERENCE_MODEL
from tests.situations.data import VOCABULARY, command, model, save

TEXT = "Some words, and one <extra> that was added.\n\n" * 40
MESSAGE = rf"of {VOCABULARY + 1} tokens, gives '<extra>' the id {VOCABULARY}, and the model has rows for {VOCABULARY} "


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A model whose tokenizer alone has learned a token."""
    folder = save(model(), tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    (tmp_path / "a.txt").write_text(TEXT)
    return folder


@pytest.mark.parametrize("documents", [False, True])
def test_a_token_beyond_the_embedding_is_named(tmp_path: Path, extended: Path, documents: bool) -> None:
    text = tmp_path / "a.txt"
    options = {"samples": 2, "seqlen": 8, "documents": documents}
    for model_source, tokenizer in ((extended, None), (model(), AutoTokenizer.from_pretrained(extended))):
        for job in (prunecomp.score, prunecomp.collect, prunecomp.pruner_for):
            with pytest.raises(DataError, match=MESSAGE):
                job(model_source, text, tokenizer=tokenizer, **options)  # type: ignore[operator]
        with pytest.raises(DataError, match=MESSAGE):
            prunecomp.evaluate(model_source, text, tokenizer=tokenizer, seqlen=8)


def test_the_command_gives_exit_4(tmp_path: Path, extended: Path) -> None:
    result = command("eval", extended, "--eval", tmp_path / "a.txt", "--seqlen", 8)
    assert result.exit_code == 4
    assert "<extra>" in result.stderr


def test_the_rows_of_the_embedding_count(tmp_path: Path) -> None:
    """Not the config's word: here a model object whose embedding and head were cut, and whose config was not."""
    cut = model(vocab_size=50)
    cut.config.vocab_size = 100
    with pytest.raises(DataError, match="token ids run from 0 to 60, the vocabulary from 0 to 49"):
        prunecomp.evaluate(cut, np.arange(61), seqlen=8)
    with pytest.raises(DataError, match="to 49"):
        prunecomp.pruner_for(cut, np.arange(40), samples=2, seqlen=8).loss(np.arange(61))
    grown = model(vocab_size=50)
    grown.config.vocab_size = 20
    assert prunecomp.evaluate(grown, np.arange(40), seqlen=8) > 1


def test_a_head_of_fewer_rows_bounds_the_ids() -> None:
    uneven = model(vocab_size=50)
    uneven.lm_head = torch.nn.Linear(32, 40, bias=False)
    with pytest.raises(DataError, match="to 39"):
        prunecomp.evaluate(uneven, np.arange(45), seqlen=8)


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(OptionError, match="tokenizer: give one of transformers"):
        prunecomp.evaluate(model(), REFERENCE_MODEL / "evaluation.txt", tokenizer="gpt2")


def test_a_tokenizer_that_knows_no_spelling_is_told_too() -> None:
    with pytest.raises(DataError, match="gives a token the id 120, and the model has rows for 100 ids"):
        token_ids("text", "a.txt", Tokenizer(lambda: lambda text, **options: {"input_ids": [99, 120]}), 100)


def test_a_tokenizer_that_fails_is_told(tmp_path: Path) -> None:
    def broken(text: str, **options: object) -> None:
        raise RuntimeError("no such piece")

    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(DataError, match=r"a\.txt: the tokenizer does not take it \(RuntimeError: no such piece\)"):
        prunecomp.evaluate(model(), tmp_path / "a.txt", tokenizer=broken)
