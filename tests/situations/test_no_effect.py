"""An option that can do nothing under the others is an error, in every command and function alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import prunecomp
from prunecomp.errors import OptionError
from tests.situations.small import Small, invoke, said, small

__all__ = ["small"]

IDLE: list[tuple[dict[str, Any], str]] = [
    ({"given": [3]}, "--given: --metric bi ranks the layers itself"),
    ({"given": [99], "metric": "ppl"}, "--given: --metric ppl ranks the layers itself"),
    ({"metric": "given", "given": [3, 2], "keep": [5]}, "--keep: --metric given removes the layers of --given"),
    ({"metric": "given", "given": [3, 2], "keep": [3]}, "--keep: --metric given removes the layers of --given"),
    ({"metric": "given", "given": [3, 2], "candidates": [3, 2, 1]}, "--candidates: --metric given"),
    ({"span": 2, "metric": "ppl"}, "--span 2: --metric ppl scores single layers"),
    ({"lookahead": True}, "--lookahead: --metric bi runs no candidate"),
    ({"lookahead": True, "metric": "ppl", "compensation": "none"}, "--lookahead: --compensation none"),
    ({"confidence": 0.9, "metric": "given", "given": [3, 2]}, "--confidence: --metric given is no mean"),
    ({"parity": "official", "metric": "ppl", "dtype": "float32"}, "--parity official: --metric ppl is the same"),
    ({"fold": "down", "compensation": "none"}, "--fold down: --compensation none folds nothing"),
    ({"samples": 3}, "--samples 3: .* is windows already, 4 of 16 tokens"),
    ({"seqlen": 8}, "--seqlen 8: .* is windows already, 4 of 16 tokens"),
    ({"host_memory": 10**9}, "--host-memory: it is the memory behind a GPU"),
    ({"host_memory": 0}, "--host-memory: it is the memory behind a GPU"),
    ({"resume": True}, "resume: there is nothing to go on with without a journal"),
]


@pytest.mark.parametrize(("options", "message"), IDLE, ids=[str(options) for options, _ in IDLE])
def test_in_every_function_that_takes_it(small: Small, options: dict[str, Any], message: str) -> None:
    tokens = np.load(small.windows)
    with pytest.raises(OptionError, match=message):
        prunecomp.prune(small.folder, 2, tokens, device="cpu", **options, preset="paper")
    if "resume" in options or "confidence" in options or {"keep", "candidates", "fold"} & options.keys():
        return
    with pytest.raises(OptionError, match=message):
        prunecomp.score(small.folder, tokens, device="cpu", **options)
    loading = {"samples", "seqlen", "host_memory"} >= options.keys()
    if loading:
        with pytest.raises(OptionError, match=message):
            prunecomp.collect(small.folder, tokens, device="cpu", **options)
    if loading or "span" in options:
        with pytest.raises(OptionError, match=message):
            prunecomp.pruner_for(small.folder, tokens, device="cpu", **options)


def words(options: dict[str, Any]) -> list[str]:
    """Options as they are written on the command line."""
    written = []
    for name, value in options.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        written += [f"--{name.replace('_', '-')}"] + ([] if value is True else [text])
    return written


@pytest.mark.parametrize(("options", "message"), IDLE[:-1], ids=[str(options) for options, _ in IDLE[:-1]])
def test_on_the_command_line(small: Small, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    result = invoke(
        "prune", small.folder, "--layers", 2, "--calibration", small.windows, "--out", tmp_path / "out",
        "--device", "cpu", *words(options),
    )  # fmt: skip
    assert result.exit_code == 2
    assert message.split(".*")[0] in said(result)
    assert list(tmp_path.iterdir()) == []


def test_one_arm_that_an_option_acts_in_is_enough(small: Small) -> None:
    tokens = np.load(small.windows)

    def compared(**options: Any) -> list[list[int]]:
        result = prunecomp.compare(small.folder, [2], tokens, eval={"x": tokens}, compensations=["none"], **options)
        return [one.removed for one in result.measurements]

    assert compared(metrics=["last", "given"], given=[3, 2], keep=[5]) == [[4, 3], [3, 2]]
    with pytest.raises(OptionError, match="--given 3: must stay by --keep or --candidates"):
        compared(metrics=["last", "given"], given=[3, 2], keep=[3])
    with pytest.raises(OptionError, match="--keep: --metric given removes"):
        compared(metrics=["given"], given=[3, 2], keep=[5])
    with pytest.raises(OptionError, match="--given: --metric last ranks"):
        compared(metrics=["last"], given=[3, 2])
    assert len(compared(metrics=["bi", "ppl"], parity="official", dtype="float32")) == 2
    with pytest.raises(OptionError, match="--parity official: --metric ppl is the same"):
        compared(metrics=["ppl"], parity="official", dtype="float32")


def test_what_is_done_anyway_may_be_asked_for(small: Small) -> None:
    tokens = np.load(small.windows)
    plain = prunecomp.prune(small.folder, 2, tokens, metric="span", preset="paper")
    asked = prunecomp.prune(
        small.folder, 2, tokens, metric="span", one_shot=True, span=2, samples=4, seqlen=16, preset="paper"
    )
    assert asked.removed == plain.removed
    assert prunecomp.prune(small.folder, 1, tokens, metric="ppl", span=1, keep=[0], preset="paper").removed
    longer = prunecomp.prune(small.folder, 2, tokens, metric="given", given=[4, 1, 3], preset="paper")
    assert longer.removed == [4, 1]  # an order may go on beyond what is removed now


def test_a_model_in_memory_is_used_as_it_is(small: Small) -> None:
    tokens = np.load(small.windows)
    model = prunecomp.pruner_for(small.folder, tokens).decoder.model
    assert prunecomp.prune(model, 1, tokens, dtype="float32", device="cpu", attn="sdpa", preset="paper").removed
    for option, value in (("dtype", "float16"), ("dtype", torch.bfloat16), ("attn", "eager")):
        for function in (prunecomp.score, prunecomp.collect, prunecomp.evaluate, prunecomp.pruner_for):
            with pytest.raises(OptionError, match=f"--{option} .*: a model in memory is used as it is"):
                function(model, tokens, **{option: value})
    with pytest.raises(OptionError, match="tokenizer: a model folder brings its own"):
        prunecomp.score(small.folder, tokens, tokenizer=lambda text: text)


def test_a_step_by_step_run_goes_through_the_same_check(small: Small) -> None:
    pruner = prunecomp.pruner_for(small.folder, np.load(small.windows), compensation="none")
    pruner.remove(3)
    with pytest.raises(OptionError, match="--fold down: --compensation none folds nothing"):
        pruner.result("down")
    assert pruner.result().options.given == [3]
