"""Agreement with the dense model, against whole logits in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from prunecomp.data.windows import Windows
from prunecomp.engine.placement import Placement, available_memory, model_shape, place
from prunecomp.errors import NumericalError, OptionError
from prunecomp.evaluation.agreement import Standing, on_text
from prunecomp.evaluation.perplexity import Estimate, perplexity, token_mean
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from tests.models import build, draw_tokens
from tests.tolerances import ROUNDINGS

EPS = ROUNDINGS * torch.finfo(torch.float32).eps


def placed(decoder: Decoder, windows: Windows) -> Placement:
    shape = model_shape(decoder.model, decoder.family, decoder.dtype)
    return place(shape, windows.count, windows.seqlen, available_memory(decoder.device), decoder.device, resident=True)


@torch.no_grad()
def logits_of(decoder: Decoder, stack: LayerStack, tokens: torch.Tensor) -> torch.Tensor:
    return decoder.logits(decoder.run(stack, tokens)).double()


def by_hand(
    decoder: Decoder, stack: LayerStack, windows: Windows, dense: Decoder | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[N] sums of losses, divergences and hits, window by window, from whole logits."""
    sums = []
    lengths = [windows.seqlen] * windows.count if windows.lengths is None else windows.lengths.tolist()
    for row, length in zip(windows.tokens, lengths, strict=True):
        tokens = row[None, :length]
        mine = logits_of(decoder, stack, tokens)[0, :-1]
        reference = dense or decoder
        theirs = logits_of(reference, LayerStack.dense(reference.num_layers), tokens)[0, :-1]
        p, q = theirs.softmax(dim=1), mine.softmax(dim=1)
        loss = -q.gather(1, tokens[0, 1:, None]).log().sum()
        sums.append((loss, (p * (p / q).log()).sum(), (mine.argmax(1) == theirs.argmax(1)).sum()))
    return tuple(torch.tensor(column, dtype=torch.float64) for column in zip(*sums, strict=True))


@pytest.mark.parametrize("ragged", [False, True])
def test_losses_divergence_and_agreement_are_those_of_whole_logits(
    model: Any, ragged: bool, generator: torch.Generator
) -> None:
    tokens = draw_tokens(model, generator, windows=7, seqlen=12)
    lengths = torch.tensor([12, 11, 9, 9, 5, 3, 2]) if ragged else None
    windows, decoder = Windows(tokens, "drawn", lengths), Decoder(model)
    placement = placed(decoder, windows)
    dense = LayerStack.dense(decoder.num_layers)
    stacks = [dense.remove(4, 1.2), dense.remove(2, 0.9).remove(4, 1.1)]
    found = on_text(windows, Standing(decoder, dense, placement), [Standing(decoder, s, placement) for s in stacks])
    predicted = (torch.full((7,), 12) if lengths is None else lengths) - 1
    assert found[0].agreement is None
    assert found[0].tokens == int(predicted.sum())
    assert found[0].perplexity.value == pytest.approx(perplexity(decoder, dense, windows, placement), rel=EPS)
    for stack, quality in zip(stacks, found[1:], strict=True):
        loss, kl, hits = by_hand(decoder, stack, windows)
        assert quality.perplexity.value == pytest.approx(math.exp(float(loss.sum() / predicted.sum())), rel=40 * EPS)
        assert quality.agreement is not None
        expected = float(kl.sum() / predicted.sum())
        assert expected > 1e-3  # there is something to measure
        assert quality.agreement.kl.value == pytest.approx(expected, rel=100 * EPS)
        assert quality.agreement.top1.value == float(hits.sum() / predicted.sum())


def test_a_model_agrees_with_itself(generator: torch.Generator) -> None:
    model = build("llama")
    windows, decoder = Windows(draw_tokens(model, generator), "drawn"), Decoder(model)
    one = Standing(decoder, LayerStack.dense(decoder.num_layers), placed(decoder, windows))
    _, same = on_text(windows, one, [one])
    assert same.agreement is not None
    assert same.agreement.kl == Estimate(0.0, 0.0)
    assert same.agreement.top1 == Estimate(1.0, 0.0)


def test_two_models_of_their_own_weights_compare(generator: torch.Generator) -> None:
    model, other = build("llama"), build("qwen2")
    windows = Windows(draw_tokens(model, generator), "drawn")
    first, second = Decoder(model), Decoder(other)
    one, two = (Standing(d, LayerStack.dense(d.num_layers), placed(d, windows)) for d in (first, second))
    _, found = on_text(windows, one, [two])
    _, kl, hits = by_hand(second, two.stack, windows, dense=first)
    count = windows.count * (windows.seqlen - 1)
    assert found.agreement is not None
    assert found.agreement.kl.value == pytest.approx(float(kl.sum() / count), rel=100 * EPS)
    assert found.agreement.top1.value == float(hits.sum() / count)


def test_models_of_other_vocabularies_are_refused(generator: torch.Generator) -> None:
    model, other = build("llama"), build("llama", vocab_size=90)
    windows = Windows(draw_tokens(other, generator), "drawn")
    one, two = (
        Standing(d, LayerStack.dense(d.num_layers), placed(d, windows)) for d in (Decoder(model), Decoder(other))
    )
    with pytest.raises(OptionError, match="90 tokens beside one of 101"):
        on_text(windows, one, [two])


def test_a_value_that_is_not_finite_names_its_place(generator: torch.Generator) -> None:
    model = build("llama")
    windows, decoder = Windows(draw_tokens(model, generator), "drawn"), Decoder(model)
    dense, placement = LayerStack.dense(decoder.num_layers), placed(decoder, windows)
    broken = dense.remove(2, 1e38).remove(3, 1e38)
    with pytest.raises(NumericalError, match="layer"):
        on_text(windows, Standing(decoder, dense, placement), [Standing(decoder, broken, placement)])


def test_the_standard_error_is_that_of_many_drawn_sets(generator: torch.Generator) -> None:
    """Windows of unequal length, drawn anew 4,000 times: the spread of the means is the error that one set states."""
    tokens = torch.randint(5, 15, (4000, 50), generator=generator)
    sums = tokens * (2.0 + torch.randn(4000, 50, generator=generator, dtype=torch.float64))
    drawn = [token_mean(s, t) for s, t in zip(sums, tokens, strict=True)]
    spread = float(torch.tensor([one.value for one in drawn]).std())
    stated = float(torch.tensor([one.standard_error for one in drawn]).mean())
    assert stated == pytest.approx(spread, rel=0.06)  # 4,000 draws know a spread to 1.1 %, 50 windows bias it by 1 %
    assert token_mean(torch.tensor([3.0]), torch.tensor([2])) == Estimate(1.5, None)
