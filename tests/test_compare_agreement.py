"""Agreement in a comparison: that of as many runs of prune, and shown beside the perplexities."""

from __future__ import annotations

import csv
import io

import pytest
import torch

import prunecomp
from prunecomp.compare import Comparison
from prunecomp.errors import JournalError
from prunecomp.io.plain import json_text, parse_json
from prunecomp.report.comparison import AGREEMENT, csv_text, markdown
from tests.models import build, draw_tokens
from tests.tolerances import ROUNDINGS


def test_agreement_is_that_of_prune_and_is_shown(generator: torch.Generator) -> None:
    model = build("llama")
    tokens, text = draw_tokens(model, generator), draw_tokens(model, generator, windows=7)
    found = prunecomp.compare(
        model, [1, 3], tokens, eval={"mine": text, "other": tokens}, metrics=["bi"], compensations=["none", "lsq"]
    )
    for one in found.measurements:
        run = prunecomp.prune(
            model,
            one.layers,
            tokens,
            eval=text,
            metric=one.arm.metric,
            compensation=one.arm.compensation,
            preset="paper",
        )
        quality = run.quality[1]
        assert quality.agreement is not None
        assert run.removed == one.removed
        assert one.perplexity["mine"] == quality.perplexity.value
        for name, value in quality.agreement.figures().items():
            assert one.agreement["mine"][name] == pytest.approx(value, rel=ROUNDINGS * torch.finfo(torch.float32).eps)
        assert one.agreement["other"] != one.agreement["mine"]
    again = Comparison.from_record(parse_json(json_text(found.record()), "it", JournalError))
    assert again.measurements == found.measurements
    last = found.measurements[-1]
    shown = f"{last.agreement['other']['top1']:.3f} ({last.agreement['other']['kl']:.3f})"
    assert shown in markdown(found)
    assert markdown(found).count(AGREEMENT) == 2
    row = list(csv.DictReader(io.StringIO(csv_text(found))))[-1]
    assert float(row["kl"]) == last.agreement["other"]["kl"]
    assert float(row["top1"]) == last.agreement["other"]["top1"]
