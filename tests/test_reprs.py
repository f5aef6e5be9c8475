"""What results say of themselves, in a line, and in a notebook."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.data.windows import Windows
from tests.models import build, draw_tokens
from tests.seeds import seed

HOSTILE = "<script>alert(1)</script>\x1b[2J"


class Cells(HTMLParser):
    """The texts of a page's cells, and the tags that it opens."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def model() -> Any:
    model = build("llama", num_hidden_layers=5)
    model.config._name_or_path = HOSTILE
    return model


@pytest.fixture(scope="module")
def tokens(model: Any) -> torch.Tensor:
    return draw_tokens(model, torch.Generator().manual_seed(seed()))


@pytest.fixture(scope="module")
def results(model: Any, tokens: torch.Tensor) -> list[Any]:
    pruner = prunecomp.pruner_for(model, tokens)
    return [
        prunecomp.prune(model, 2, calibration=tokens, eval=tokens, preset="paper"),
        prunecomp.score(model, tokens),
        prunecomp.compare(model, [1, 2], tokens, eval={HOSTILE: tokens}),
        prunecomp.collect(model, tokens),
        pruner,
        Windows(tokens, HOSTILE),
    ]


def test_results_are_told_in_a_line(results: list[Any]) -> None:
    for result in results:
        assert len(repr(result)) < 250
        assert repr(result).isprintable()


def test_a_pruned_model_tells_layers_scales_and_perplexities(results: list[Any]) -> None:
    result = results[0]
    for layer in result.removed:
        assert str(layer) in repr(result).split("layers ")[1].split(" of 5")[0].split(", ")
    assert all(f"{scale:.4g}" in repr(result) for scale in result.scales)
    assert f"perplexity {result.perplexity['dense']:.4g} -> {result.perplexity['pruned']:.4g}" in repr(result)


def test_a_notebook_shows_tables_in_which_no_name_is_markup(results: list[Any]) -> None:
    for result in results[:3]:
        page = Cells(result._repr_html_())
        assert page.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    pruned, scored, compared = results[:3]
    assert [f"{scale:.5g}" for scale in pruned.scales] == Cells(pruned._repr_html_()).texts[8::4]
    assert f"{min(scored.scores.values()):.5g}" == Cells(scored._repr_html_()).texts[5]
    cells = Cells(compared._repr_html_()).texts
    assert all(f"{m.perplexity[HOSTILE]:.5g}" in cells for m in compared.measurements)
