"""llama.cpp: an export becomes a GGUF file whose logits are those of transformers."""

from __future__ import annotations

import math
from contextlib import closing

from gguf import GGUFReader

from benchmarks.interop.exports import SEQLEN, Export, Exports, evaluation_text, load, logits, loss, tokenize, windows
from benchmarks.interop.gguf_file import convert, gguf_logits, open_gguf
from benchmarks.interop.report import Finding

PECULIAR = (
    "\n \n\n  \t\t x   y\n   3 33 333 3333 3.3 3...3 I've 'told HE'S  a'lL "
    "\u00e9\u00e0\u00fc \u041d\u0435\u0449\u043e \U0001f980 ------=== !!??"
)
"""Where pre-tokenizers part: runs of blanks, digits, contractions, letters that are not ASCII."""
LOGITS, PERPLEXITY = 1e-3, 1e-5


def run(exports: Exports) -> list[Finding]:
    return [finding for export in exports.repaired for finding in _check(export, exports)]


def _check(export: Export, exports: Exports) -> list[Finding]:
    file = exports.work / f"{export.folder.name}.gguf"
    convert(export.folder, file)
    layers = int(GGUFReader(file).fields["llama.block_count"].parts[-1][0])
    text = evaluation_text() + PECULIAR
    with closing(open_gguf(file, SEQLEN)) as model:
        theirs = gguf_logits(model, windows())
        ids = model.tokenize(text.encode(), add_bos=False)
    right, wrong = logits(export.folder), logits(exports.control.folder)
    perplexity, ours, control = (math.exp(loss(some)) for some in (theirs, right, wrong))
    wanted = tokenize(text)
    different = sum(a != b for a, b in zip(ids, wanted, strict=False)) + abs(len(ids) - len(wanted))
    missing = abs(layers - load(export.folder).config.num_hidden_layers)

    def finding(
        compared: str, error: float, tolerance: float, control: float | None = None, values: str = ""
    ) -> Finding:
        return Finding("llama.cpp", export.name, compared, error, tolerance, control, values)

    tokens = windows().numel()
    return [
        finding("number of layers in the GGUF file, off by", missing, 0, None, f"{layers} layers"),
        finding("token ids that differ", different, 0, None, f"{len(wanted)} tokens"),
        finding(
            f"logits on {tokens} tokens, largest difference", float((theirs - right).abs().max()), LOGITS,
            float((theirs - wrong).abs().max()), f"standard deviation {float(right.std()):.2f}",
        ),
        finding(
            f"perplexity on {tokens} tokens, relative", abs(perplexity / ours - 1), PERPLEXITY,
            abs(perplexity / control - 1), f"{perplexity:.6f} and {ours:.6f}",
        ),
    ]  # fmt: skip
