"""What each repair gives on kinds of text that were not calibrated on, for several ways to choose the layers.

    python -m benchmarks.real.repairs models/SmolLM2-135M-Instruct --wikitext wikitext2-test.txt --books books.txt \
        --out benchmarks/results/real/smollm2-repairs

Each way to choose runs once, to the largest N; at each N every repair is fitted to what was chosen, and all of them are
evaluated side by side. ``repairs.json`` is written after each N, and the same call goes on from there; then follow
``tables.md`` and ``perplexity.png``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.real.texts import add_arguments, judged_on
from prunecomp.data.windows import Windows
from prunecomp.evaluation.agreement import Standing, on_text
from prunecomp.io.escape import markdown_table
from prunecomp.io.plain import write_json
from prunecomp.model.decoder import Decoder
from prunecomp.model.stack import LayerStack
from prunecomp.options import PruneOptions
from prunecomp.pruning.rounds import run_rounds
from prunecomp.pruning.session import Session
from prunecomp.repair.judge import Setting, judge, put, settings
from prunecomp.report.plots import panels_figure

RECORD = "repairs.json"
DRAWN = {
    "none": "nothing", "scale": "the paper's scale", "norm": "ratio of norms", "lsq": "least-squares scalar",
    "none + refit, ridge 1": "refit", "none + joint, ridge 1": "joint (default)", "none + map, ridge 1": "map",
}  # fmt: skip
"""The arms in the plot."""
LOOPS = ("none", "scale", "norm", "lsq")
"""What stands in the seams while the layers are chosen: a ``--compensation``."""


def repairs_of(decoder: Decoder) -> list[Setting]:
    """What is fitted, beside what the loop left."""
    if decoder.family.mlp_norm is not None:  # scalars hurt there, and attention cannot take part
        return [Setting("refit", ridge) for ridge in (1.0, 3.0)]
    return [Setting("refit", 1.0), Setting("joint", 1.0), Setting("joint", 3.0), Setting("map", 1.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--calibration", help="a text; by default the bundled mixture")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3, 5, 8])
    parser.add_argument("--loops", nargs="+", default=["none", "scale", "norm"], choices=LOOPS)
    parser.add_argument("--fit", nargs="+", default=["none", "scale"], help="loops whose choices are repaired")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--seqlen", type=int, default=256, help="of a calibration window")
    parser.add_argument("--evaluated", type=int, default=128, help="tokens of a window of a text")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration windows")
    parser.add_argument("--auto", action="store_true", help="also what the judge of --repair auto takes")
    parser.add_argument("--tables", action="store_true", help="measure nothing: tables and plot of what is there")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.tables:
        measure(options)
    show(json.loads((options.out / RECORD).read_text()), options.out)


def measure(options: argparse.Namespace) -> None:
    texts = judged_on(options, options.evaluated)
    file = options.out / RECORD
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"cells": []}
    done = {cell["layers"] for cell in record["cells"]}
    most = max(options.layers)
    chosen: dict[str, list[LayerStack]] = {}
    for loop in options.loops:
        started = time.perf_counter()
        asked = PruneOptions.of(
            "prune", {
                "layers": most, "calibration": options.calibration, "samples": options.samples, "seed": options.seed,
                "seqlen": options.seqlen, "dtype": "float32", "compensation": loop, "repair": "none", "compile": "off",
            },
        )  # fmt: skip
        session = Session(options.model, asked)
        windows = session.calibration()
        placement = session.place(windows.count, windows.seqlen)
        pruner = session.pruner(windows, placement, candidates=session.candidates())
        stacks = [pruner.stack]
        run_rounds(pruner, most, session.candidates(), False, on_round=lambda *_, p=pruner, s=stacks: s.append(p.stack))
        chosen[loop] = stacks
        pruner.release()
        print(f"{loop}: {stacks[-1].removed}, {time.perf_counter() - started:.0f} s", flush=True)
    decoder = pruner.decoder
    evaluated = {name: session.evaluation(text) for name, text in texts.items()}
    record |= {
        "model": options.model.name,
        "calibration": "mixture" if options.calibration is None else Path(options.calibration).name,
        "samples": windows.count, "seqlen": windows.seqlen,
        "windows": options.windows, "seed": options.seed, "digest": windows.digest,
    }  # fmt: skip
    for layers in (each for each in options.layers if each not in done):
        arms: dict[str, tuple[LayerStack, dict[str, Any]]] = {}
        for loop in options.loops:
            stack = chosen[loop][layers]
            arms[f"{loop}"] = (stack, {"seconds": 0.0})
            if loop not in options.fit:
                continue
            twin = next((o for o in options.fit if o != loop and f"{o} + fits" in arms
                         and chosen[o][layers].alive == stack.alive), None)  # fmt: skip
            arms[f"{loop} + fits"] = (stack, {"same layers": twin})
            if twin:
                continue
            for setting in repairs_of(decoder):
                repaired = put(setting, decoder, windows, placement, stack)
                arms[f"{loop} + {setting.name}"] = (
                    repaired.stack,
                    {"seconds": repaired.seconds, "layer forwards": repaired.window_forwards / windows.count},
                )
            if options.auto:
                verdict = judge(decoder, windows, placement, stack, settings(decoder, "auto", 1.0, stack, True))
                arms[f"{loop} + fits"][1].update(auto=verdict.setting.name, losses=verdict.losses)
        record["cells"].append(cell(layers, arms, decoder, placement, evaluated))
        write_json(file, record)
        print(f"N = {layers} is measured", flush=True)


def cell(
    layers: int, arms: dict[str, tuple[LayerStack, dict[str, Any]]], decoder: Decoder, placement: Any,
    texts: dict[str, Windows],
) -> dict[str, Any]:  # fmt: skip
    """All arms on each kind of text."""
    measured = {name: arm for name, arm in arms.items() if not name.endswith("+ fits")}
    dense = Standing(decoder, LayerStack.dense(decoder.num_layers), placement)
    kinds: dict[str, list[Any]] = {}
    for kind, windows in texts.items():
        kinds[kind] = [one.record() for one in on_text(
            windows, dense, [replace(dense, stack=stack) for stack, _ in measured.values()]
        )]  # fmt: skip
    rows = {
        name: {
            "removed": stack.removed, "seams": list(stack.seams), **about,
            "texts": {kind: found[1 + number] for kind, found in kinds.items()},
        }
        for number, (name, (stack, about)) in enumerate(measured.items())
    }  # fmt: skip
    return {
        "layers": layers, "dense": {kind: found[0] for kind, found in kinds.items()}, "arms": rows,
        "choices": {name: about for name, (_, about) in arms.items() if name.endswith("+ fits")},
    }  # fmt: skip


def show(record: dict[str, Any], folder: Path) -> None:
    """``tables.md``, and perplexity against layers removed as ``perplexity.png``."""
    (folder / "tables.md").write_text("\n".join(tables(record)) + "\n", encoding="utf-8")
    cells = sorted(record["cells"], key=lambda one: int(one["layers"]))
    dense = {kind: found["perplexity"]["value"] for kind, found in cells[0]["dense"].items()}
    arms = [name for name in DRAWN if all(name in one["arms"] for one in cells)]
    lines = {
        kind: {
            DRAWN[name]: [(0.0, base), *(
                (float(one["layers"]), one["arms"][name]["texts"][kind]["perplexity"]["value"]) for one in cells
            )] for name in arms
        } for kind, base in dense.items()
    }  # fmt: skip
    best = {kind: min(points, key=lambda name: points[name][-1][1]) for kind, points in lines.items()}
    first = cells[0]["arms"][arms[0]]
    num_layers = len(first["seams"]) + len(first["removed"])
    panels_figure(lines, best, dense, num_layers).savefig(folder / "perplexity.png", dpi=110)


def tables(record: dict[str, Any]) -> list[str]:
    """Perplexity, its standard error, and the divergence from the dense model, of each arm on each kind of text."""
    lines = [
        f"{record['model']}, calibrated on {record['samples']} windows of {record['seqlen']} tokens of "
        f"`{record['calibration']}`; {record['windows']} windows of each kind of text. Perplexity with its standard "
        "error over windows, and in parentheses KL(dense || model) in nats a token.",
    ]
    for one in sorted(record["cells"], key=lambda one: int(one["layers"])):
        kinds = list(one["dense"])
        rows = [["dense", *(quality(text) for text in one["dense"].values()), ""]]
        for name, arm in one["arms"].items():
            rows.append([name, *map(quality, arm["texts"].values()), " ".join(map(str, arm["removed"]))])
        lines += ["", f"## {one['layers']} layers gone", "", *markdown_table(["arm", *kinds, "layers gone"], rows)]
    return lines


def quality(text: dict[str, Any]) -> str:
    perplexity, agreement = text["perplexity"], text["agreement"]
    shown = f"{perplexity['value']:.1f} ± {perplexity['standard_error']:.1f}"
    return shown if agreement is None else f"{shown} ({agreement['kl']['value']:.2f})"


if __name__ == "__main__":
    main()
