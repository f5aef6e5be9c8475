"""What a chat model can still do with 1, 2, 3, 5 and 8 layers gone: with nothing in their place, by the paper's method,
and with the joint fit, which is what ``prune`` does if told nothing, less its judge.

    python -m benchmarks.real.profiles models/SmolLM2-135M-Instruct --out benchmarks/results/real/smollm2-profile

One run an arm stops at every number of layers (:func:`prunecomp.curve`), calibrated on the bundled mixture. Perplexity
is of verse and code that are not calibrated on, the rest is asked as ``prunecomp prune --profile`` does.
A file by the names of the ``--arms``, as JSON and as tables, has those that are done, with what each run took beside
its largest number of layers alone.
"""

from __future__ import annotations

import argparse
import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

import prunecomp
from prunecomp.evaluation.profile import Profile
from prunecomp.io.plain import json_text
from prunecomp.report.profile import profile_markdown

TEXTS = Path(__file__).parents[2] / "examples" / "texts"
STOPS = [1, 2, 3, 5, 8]
ARMS: dict[str, dict[str, Any]] = {
    "nothing": {"compensation": "none", "repair": "none"},
    "paper": {"preset": "paper"},
    "joint": {"repair": "joint"},
}
KINDS, EVALUATED = ("verse.txt", "code.txt"), 6


def evaluation(model: Path, seqlen: int) -> np.ndarray:
    """The first windows of each kind, int64 [2 * EVALUATED, seqlen]."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [np.array(tokenizer((TEXTS / kind).read_text(encoding="utf-8"))["input_ids"]) for kind in KINDS]
    return np.concatenate([ids[: EVALUATED * seqlen].reshape(EVALUATED, seqlen) for ids in rows])


def write(out: Path, record: dict[str, Any], profile: Profile) -> None:
    """To ``out`` with either ending."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json_text({**record, **profile.record()}) + "\n", encoding="utf-8")
    costs = [f"- {arm}: {cost['told']}" for arm, cost in record["costs"].items()]
    out.with_suffix(".md").write_text("\n".join([profile_markdown(profile), *costs]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seqlen", type=int, default=256)
    given = parser.parse_args()
    common: dict[str, Any] = {
        "samples": given.samples, "seqlen": given.seqlen, "items": given.items, "dtype": "float32",
        "eval": evaluation(given.model, given.seqlen), "profile": True, "progress": True,
    }  # fmt: skip
    record: dict[str, Any] = {
        "model": given.model.name, "windows": given.samples, "seqlen": given.seqlen, "dtype": "float32",
        "threads": torch.get_num_threads(), "machine": platform.processor(), "costs": {},
        "versions": {"prunecomp": prunecomp.__version__, **{n: version(n) for n in ("torch", "transformers")}},
    }  # fmt: skip
    profile: Profile | None = None
    for arm in given.arms:
        found = prunecomp.curve(given.model, STOPS, **common, **ARMS[arm])
        seen = [result.profile for result in found]
        models = [
            replace(one.models[1], name=f"{arm}, {len(one.models[1].removed)}") for one in seen if one is not None
        ]
        before = profile or replace(seen[0], models=seen[0].models[:1])
        profile = replace(before, models=[*before.models, *models])
        record["costs"][arm] = {**found.cost(), "told": found.told_cost()}
        write(given.out / "-".join(given.arms), record, profile)


if __name__ == "__main__":
    main()
