"""How far repairs depend on the calibration windows: the same arms over several draws of them.

    python -m benchmarks.real.seeds models/SmolLM2-135M-Instruct --wikitext wikitext2-test.txt --books books.txt \
        --out benchmarks/results/real/smollm2-seeds

Each seed draws its windows of the bundled mixture, or with ``--only-kind`` of one of its texts, and is a comparison of
its own (:func:`prunecomp.compare`) in a folder under ``--out``; a second call goes on with the arms that are not
complete. The texts that are judged on are the same for all. ``tables.md``, or ``KIND.md``, has the lowest, the median
and the highest of the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

import prunecomp
from benchmarks.real.__main__ import without_paths
from benchmarks.real.texts import documents_of, windows_of
from prunecomp.compare import Comparison, grid
from prunecomp.io.escape import markdown_table
from prunecomp.io.progress import told
from prunecomp.pruning.inputs import MIXTURE
from prunecomp.report.comparison import RECORD, load_record, save_record

KINDS = {text.stem: text for text in MIXTURE}
QUANTILES = (0.0, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--wikitext", type=Path, required=True, help="WikiText-2 test")
    parser.add_argument("--books", type=Path, required=True, help="a collection of books, see texts.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the calibration windows")
    parser.add_argument("--only-kind", choices=KINDS, help="of the bundled mixture; by default all of it")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 3, 5, 8])
    parser.add_argument("--compensations", nargs="+", default=["none", "scale"])
    parser.add_argument("--repairs", nargs="+", default=["none", "refit", "joint", "auto"])
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--windows", type=int, default=8, help="of each kind of text")
    parser.add_argument("--seqlen", type=int, default=256, help="of a calibration window")
    parser.add_argument("--evaluated", type=int, default=128, help="tokens of a window of a text")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    texts = windows_of(
        documents_of(options.wikitext, options.books), lambda: AutoTokenizer.from_pretrained(options.model),
        options.windows, options.evaluated,
    )  # fmt: skip
    found = []
    for seed in options.seeds:
        found.append(measured(options, seed, texts))
        lines = tables(found, options.only_kind or "mixture")
        (options.out / f"{options.only_kind or 'tables'}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measured(options: argparse.Namespace, seed: int, texts: dict[str, np.ndarray]) -> Comparison:
    """All arms on the windows of one seed."""
    folder = options.out / f"{options.only_kind or 'mixture'}-{seed}"
    result = without_paths(
        prunecomp.compare(
            options.model, options.layers, None if options.only_kind is None else KINDS[options.only_kind], eval=texts,
            arms=grid(["bi"], options.compensations, repairs=options.repairs), samples=options.samples,
            seqlen=options.seqlen, seed=seed, dtype="float32", compile="off", progress=told(),
            earlier=load_record(folder) if (folder / RECORD).exists() else None,
            on_measured=lambda so_far: save_record(without_paths(so_far), folder),
        )
    )  # fmt: skip
    save_record(result, folder)
    return result


def tables(found: Sequence[Comparison], calibration: str) -> list[str]:
    """For each number of layers a row an arm, a column a kind of text: quantiles of the perplexity over the seeds."""
    first = found[0]
    lines = [
        f"{first.model}, calibrated on {first.calibration.windows} windows of {first.calibration.seqlen} tokens of "
        f"`{calibration}`, drawn {len(found)} times. Perplexity: lowest / median / highest of the draws.",
    ]
    kinds = [text.name for text in first.texts]
    for count in first.layers:
        rows = []
        for arm in first.arms:
            cells = [one for one in (result.measurement(arm, count) for result in found) if one is not None]
            values = [quantiles([cell.perplexity[kind] for cell in cells]) for kind in kinds]
            rows.append([arm.name, *values])
        lines += ["", f"## {count} layers gone", "", *markdown_table(["arm", *kinds], rows)]
    return lines


def quantiles(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in np.quantile(values, QUANTILES))


if __name__ == "__main__":
    main()
