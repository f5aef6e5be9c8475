"""Other methods on the same windows, each as its authors have it, beside the paper's and ours, over draws of windows.

    python -m benchmarks.real.peers models/SmolLM2-135M-Instruct --wikitext wikitext2-test.txt --books books.txt \
        --out benchmarks/results/real/smollm2-peers

For each seed windows are drawn of the bundled mixture, or with ``--only-kind`` of one of its texts; all methods choose
and fit by them, and are judged on the same windows of four kinds of text. All is run by transformers, with hooks where
a method leaves a map that is run with the model: the engine has a part in the last two arms alone. ``peers.json`` is
written after each number of layers, and the same call goes on from there; ``tables.md`` has the median of the draws
and, of several, the lowest and the highest.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import prunecomp
from benchmarks.baselines import maps, sleb
from benchmarks.real.texts import add_arguments, judged_on
from prunecomp.io.escape import markdown_table
from prunecomp.io.plain import write_json
from prunecomp.pruning.inputs import MIXTURE

KINDS = {text.stem: text for text in MIXTURE}
FILE = "peers.json"
OURS: dict[str, dict[str, Any]] = {"Prune&Comp": {"preset": "paper"}, "ours": {"compensation": "none"}}
Map = Callable[[maps.Streams, int, int], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the calibration windows")
    parser.add_argument("--only-kind", choices=KINDS, help="of the bundled mixture; by default all of it")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 3, 5, 8])
    parser.add_argument("--repair", default="joint", help="ours: 'auto' is the default, with its judge")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--seqlen", type=int, default=256, help="of a calibration window")
    parser.add_argument("--evaluated", type=int, default=128, help="tokens of a window of a text")
    parser.add_argument("--sleb", type=int, default=4, help="calibration windows that SLEB chooses by; 0 leaves it out")
    parser.add_argument("--tables", action="store_true", help="measure nothing: tables of what is there")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / FILE
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"draws": {}}
    if not options.tables:
        texts = judged_on(options, options.evaluated)
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
        record |= {
            "model": options.model.name, "num_layers": model.config.num_hidden_layers, "repair": options.repair,
            "calibration": options.only_kind or "mixture", "samples": options.samples, "seqlen": options.seqlen,
            "windows": options.windows, "evaluated": options.evaluated, "dense": quality(model, texts),
        }  # fmt: skip
        for seed in options.seeds:
            draw = record["draws"].setdefault(str(seed), {})
            for count, arms in measured(options, seed, model, texts, set(map(int, draw))):
                draw[str(count)] = arms
                write_json(file, record)
                print(f"seed {seed}, {count} layers: {', '.join(arms)}", flush=True)
    (options.out / "tables.md").write_text("\n".join(tables(record)) + "\n", encoding="utf-8")


def measured(options: argparse.Namespace, seed: int, model: Any, texts: dict[str, np.ndarray], done: set[int]) -> Any:
    """For each number of layers that is not ``done``, it and its arms."""
    todo = [count for count in options.layers if count not in done]
    if not todo:
        return
    calibration = None if options.only_kind is None else KINDS[options.only_kind]
    drawn: dict[str, Any] = {
        "samples": options.samples, "seqlen": options.seqlen, "seed": seed, "dtype": "float32", "compile": "off",
    }  # fmt: skip
    ours = {
        name: prunecomp.curve(options.model, todo, calibration, **drawn, **arm)
        for name, arm in {**OURS, "ours": {**OURS["ours"], "repair": options.repair}}.items()
    }
    tokens = torch.as_tensor(ours["ours"][0].calibration.tokens)
    streams = maps.Streams(model, tokens)
    greedy = sleb.prune(model, max(todo), tokens[: options.sleb]).removed if options.sleb else []
    for number, count in enumerate(todo):
        arms: dict[str, Any] = {}
        for name, removed, pruned in others(model, streams, greedy[:count], count):
            arms[name] = {"removed": removed, "perplexity": quality(pruned, texts)}
        for name, stops in ours.items():
            with stops[number].applied(model):
                arms[name] = {"removed": sorted(stops[number].removed), "perplexity": quality(model, texts)}
        yield count, arms


def others(model: Any, streams: maps.Streams, greedy: list[int], count: int) -> Iterator[tuple[str, list[int], Any]]:
    """The name of each method, the layers that it takes and the model that it leaves."""
    choices = {"ShortGPT": maps.short_gpt(streams, count), "LLM-Streamline": maps.streamline(streams, count)}
    for name, removed in {**choices, **({"SLEB": sorted(greedy)} if greedy else {})}.items():
        yield name, removed, without(model, removed)
    for name, fit in (("LinearPatch", maps.linear_patch), ("Ghosted Layers", maps.ghosted)):
        for choice, removed in choices.items():
            yield f"{name} on {choice}", removed, mapped(model, streams, removed, fit)
    if hasattr(model.model.layers[0], "post_feedforward_layernorm"):
        return  # ReplaceMe's map would have to go behind it
    block = maps.replace_me_block(streams, count)
    for name, cosine in (("least squares", False), ("cosine", True)):
        yield f"ReplaceMe, {name}", block, replaced(model, streams, block, cosine)


def without(model: Any, removed: list[int]) -> Any:
    """A copy with these layers gone."""
    pruned = copy.deepcopy(model)
    prunecomp.cut(pruned, removed)
    return pruned


def mapped(model: Any, streams: maps.Streams, removed: list[int], fit: Map) -> Any:
    """The same, with one map for each layer that is gone, or for a whole block where it is one, run with the model."""
    pruned = without(model, removed)
    kept = [layer for layer in range(len(model.model.layers)) if layer not in removed]
    blocks = maps.gaps(removed)
    for start, end in blocks if len(blocks) == 1 else [(layer, layer + 1) for layer in sorted(removed)]:
        above = next((at for at, layer in enumerate(kept) if layer >= end), None)
        reader = pruned.model.norm if above is None else pruned.model.layers[above]
        matrix = fit(streams, start, end)
        reader.register_forward_pre_hook(lambda _, args, m=matrix: (args[0] @ m, *args[1:]))
    return pruned


def replaced(model: Any, streams: maps.Streams, block: list[int], cosine: bool) -> Any:
    """The same, with ReplaceMe's map in the down projection below."""
    pruned = without(model, block)
    matrix = maps.replace_me(streams, block[0], block[-1] + 1, cosine)
    with torch.no_grad():
        weight = pruned.model.layers[block[0] - 1].mlp.down_proj.weight
        weight.copy_(matrix.T @ weight)
    return pruned


@torch.no_grad()
def quality(model: Any, texts: dict[str, np.ndarray]) -> dict[str, float]:
    """Perplexity of each kind, from the mean loss over all predicted tokens."""
    found = {}
    for kind, windows in texts.items():
        losses = []
        for window in torch.as_tensor(windows):
            logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, window[1:]))
        found[kind] = float(torch.stack(losses).double().mean().exp())
    return found


def tables(record: dict[str, Any]) -> list[str]:
    """For each number of layers a row an arm, a column a kind of text."""
    draws = record["draws"].values()
    lines = [
        f"{record['model']}, {record['num_layers']} layers, calibrated on {record['samples']} windows of "
        f"{record['seqlen']} tokens of `{record['calibration']}`, draws: {len(draws)}; {record['windows']} windows of "
        f"{record['evaluated']} tokens of each kind of text. Perplexity: the median of the draws, and in parentheses "
        f"the lowest and the highest. Ours chooses with nothing in place and then fits `{record['repair']}`."
    ]
    for count in sorted({int(count) for draw in draws for count in draw}):
        cells = [draw[str(count)] for draw in draws if str(count) in draw]
        rows = [["dense", *(f"{value:.1f}" for value in record["dense"].values()), ""]]
        for name in cells[0]:
            arms = [cell[name] for cell in cells if name in cell]
            sets = {" ".join(map(str, arm["removed"])) for arm in arms}
            kinds = [shown([arm["perplexity"][kind] for arm in arms]) for kind in record["dense"]]
            rows.append([name, *kinds, sets.pop() if len(sets) == 1 else "differ"])
        lines += ["", f"## {count} layers gone", "", *markdown_table(["", *record["dense"], "layers gone"], rows)]
    return lines


def shown(values: list[float]) -> str:
    middle = f"{statistics.median(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
