"""Samples of different lengths: padded or packed, the statistics of each sequence on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import prunecomp
from prunecomp.data.sources import TokenSource, read_documents
from prunecomp.data.windows import Windows, draw_documents, draw_windows
from prunecomp.errors import DataError, PrunecompWarning
from prunecomp.model.decoder import Decoder
from prunecomp.pruning.pruner import Pruner
from tests.models import build, draw_tokens
from tests.tolerances import SCALE


class PackingDecoder(Decoder):
    """Packs although its attention builds a block-diagonal mask for it, as flash-attn would not have to."""

    packs = True


def ragged(model: Any, generator: torch.Generator) -> Windows:
    tokens = draw_tokens(model, generator, windows=7, seqlen=24)
    lengths = torch.tensor([24, 19, 17, 11, 8, 5, 2])
    return Windows(tokens, "test", lengths)


def records(pruner: Pruner, layers: int) -> list[torch.Tensor]:
    pruner.score()
    return [part for layer in range(layers) for part in vars(pruner._run.statistics.of(layer)).values()]


def test_padding_does_not_reach_the_statistics(model: Any, generator: torch.Generator) -> None:
    model.double()  # a short sequence has channels near zero, whose ratios magnify rounding
    windows = ragged(model, generator)
    alone = [
        records(Pruner(Decoder(model), Windows(row[:n].unsqueeze(0), "one")), 6)
        for row, n in zip(windows.tokens, windows.lengths.tolist(), strict=True)
    ]
    for decoder in (Decoder(model), PackingDecoder(model)):
        together = records(Pruner(decoder, windows), 6)
        for number, part in enumerate(together):
            expected = torch.cat([one[number] for one in alone])
            torch.testing.assert_close(part, expected, rtol=1e-6, atol=1e-7)


def test_what_stands_in_the_padding_does_not_matter(model: Any, generator: torch.Generator) -> None:
    windows = ragged(model, generator)
    other = windows.tokens.clone()
    other[torch.arange(24) >= windows.lengths.unsqueeze(1)] = 3
    first = records(Pruner(Decoder(model), windows), 6)
    second = records(Pruner(Decoder(model), Windows(other, "test", windows.lengths)), 6)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_block_influence_is_a_mean_over_real_tokens(generator: torch.Generator) -> None:
    model = build("llama")
    windows = ragged(model, generator)
    pruner = Pruner(Decoder(model), windows)
    scores = pruner.score()
    assert windows.num_tokens == 86
    cosine = pruner._run.statistics.of(2).cosine.sum()
    assert scores[2] == pytest.approx(1 - float(cosine) / 86)


@pytest.mark.parametrize("packed", [False, True])
def test_rounds_and_perplexity_agree_padded_packed_and_streamed(
    generator: torch.Generator, tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("qwen2")
    windows = ragged(model, generator)
    source = windows.tokens.clone()
    source[torch.arange(24) >= windows.lengths.unsqueeze(1)] = -1
    plain = prunecomp.prune(model, 3, source.numpy(), eval=source.numpy(), preset="paper")
    losses = []
    with torch.no_grad():
        for row, n in zip(windows.tokens, windows.lengths.tolist(), strict=True):
            losses.append(float(model(input_ids=row[None, :n], labels=row[None, :n]).loss) * (n - 1))
    assert plain.perplexity["dense"] == pytest.approx(np.exp(sum(losses) / (86 - 7)), rel=1e-5)
    if packed:
        monkeypatch.setattr(Decoder, "packs", True)
    model.save_pretrained(tmp_path / "base")
    other = prunecomp.prune(
        tmp_path / "base", 3, source.numpy(), eval=source.numpy(), device_memory=500_000, disk=tmp_path, preset="paper"
    )
    assert other.placement.group_size == 1
    assert other.removed == plain.removed
    np.testing.assert_allclose(other.scales, plain.scales, rtol=SCALE)
    assert other.perplexity == pytest.approx(plain.perplexity, rel=1e-5)


def test_full_windows_need_no_mask(model: Any, generator: torch.Generator) -> None:
    _, arguments = Decoder(model).enter(draw_tokens(model, generator))
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"] * 6
    for kind, given in zip(kinds, arguments, strict=True):
        assert kind != "full_attention" or given["attention_mask"] is None or model.config.sliding_window == 8


def test_documents_are_drawn_whole_longest_first(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    texts = ["abc", "x", "", "hello there", "some more", "de"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = read_documents(path, lambda text: [ord(c) for c in text])
    windows = draw_documents(source, 3, 9, seed=1)
    assert windows.lengths is not None
    assert windows.lengths.tolist() == sorted(windows.lengths.tolist(), reverse=True)
    allowed = {text[:9] for text in texts if len(text) >= 2}
    for row, n in zip(windows.tokens, windows.lengths.tolist(), strict=True):
        assert "".join(map(chr, row[:n].tolist())) in allowed
        assert not row[n:].any()
    assert draw_documents(source, 3, 9, seed=1).digest == windows.digest
    with pytest.warns(PrunecompWarning, match="has 4 documents of two tokens or more, fewer than --samples 5: each is"):
        assert draw_documents(source, 5, 9, seed=0).count == 4


def test_padding_must_stand_at_the_end() -> None:
    with pytest.raises(DataError, match="must stand at the end"):
        draw_windows(TokenSource(np.array([[1, -1, 2]]), "rows"), 1, 2, 0)
    with pytest.raises(DataError, match="row 1: a window needs at least two tokens"):
        draw_windows(TokenSource(np.array([[1, 2, 2], [1, -1, -1]]), "rows"), 1, 2, 0)


def test_the_command_line_takes_documents(reference_model: Path, tmp_path: Path) -> None:
    paragraphs = (reference_model / "calibration.txt").read_text()
    result = prunecomp.score(reference_model, reference_model / "calibration.txt", samples=5, seqlen=32, documents=True)
    assert len(result.scores) == 16
    assert "\n\n" in paragraphs
