"""Seconds that a task of multiple choice takes us and lm-eval's own ``hf`` model, asked the same requests.

    python -m benchmarks.real.tasks models/SmolLM2-135M-Instruct --limit 12

It needs lm-eval (0.4.13), and no network: the questions are those of MMLU that lie in its wheel as solved examples
(``tasks/mmlu/flan_cot_fewshot/_cot_prompts.json``, MIT; 273 of the 281 are read). Each stands after others of its
subject, solved, and is asked by the texts of its four answers, or by their letters. Both take turns, and the quickest
of each counts, in seconds of processor time; ``hf`` is given each of ``--batches``.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lm_eval
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunecomp.evaluation.language import Language
from prunecomp.evaluation.tasks import _asked

EXEMPLARS = Path(lm_eval.__file__).parent / "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
QUESTION = re.compile(
    r"Q: (.+?)\s*\(A\) (.+?) \(B\) (.+?) \(C\) (.+?) \(D\) (.+?)\nA: .*?The answer is \(([A-D])\)", re.DOTALL
)


def questions(shots: int) -> list[dict[str, Any]]:
    """Each with at most so many solved ones before it, and its answers, as texts and as letters."""
    rows = []
    for text in json.loads(EXEMPLARS.read_text(encoding="utf-8")).values():
        found = [(asked, [a, b, c, d], "ABCD".index(right)) for asked, a, b, c, d, right in QUESTION.findall(text)]
        for number, (_, ends, answer) in enumerate(found):
            order = [*[*found[:number], *found[number + 1 :]][:shots], found[number]]
            plain = [(f"Q: {asked}\nA:", some[right]) for asked, some, right in order]
            listed = [
                ("\n".join([f"Q: {asked}", *map(". ".join, zip("ABCD", some, strict=True)), "A:"]), "ABCD"[right])
                for asked, some, right in order
            ]
            starts = ["\n\n".join([*map(" ".join, one[:-1]), one[-1][0]]) for one in (plain, listed)]
            rows.append({"answer": answer, "texts": ends, "letters": [*"ABCD"],
                         "texts_start": starts[0], "letters_start": starts[1]})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", type=int, default=12, help="questions")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(options.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ways = {"ours": _asked(Language(model, tokenizer, []))}
    for batch in options.batches:
        ways[f"hf, batches of {batch}"] = HFLM(model, tokenizer=tokenizer, batch_size=batch)
    with TemporaryDirectory() as folder:
        data = Path(folder) / "questions.jsonl"
        rows = questions(options.shots)[: options.limit]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for kind in ("texts", "letters"):
            task = ConfigurableTask(config={
                "task": kind, "dataset_path": "json", "test_split": "train",
                "dataset_kwargs": {"data_files": str(data)}, "output_type": "multiple_choice", "num_fewshot": 0,
                "doc_to_text": f"{kind}_start", "doc_to_choice": kind, "doc_to_target": "answer",
            })  # fmt: skip
            task.build_all_requests()
            measure(kind, task.instances, ways, options.repeats)


def measure(kind: str, requests: list[Any], ways: dict[str, Any], repeats: int) -> None:
    """Print what each of ``ways`` takes, and how far its log-likelihoods are from ours."""
    seconds, found = dict.fromkeys(ways, float("inf")), {}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.process_time()
            answers = way.loglikelihood(requests, disable_tqdm=True)
            seconds[name] = min(seconds[name], time.process_time() - began)
            found[name] = torch.tensor([log for log, _ in answers], dtype=torch.float64)
    for name, spent in seconds.items():
        apart = float((found[name] / found["ours"] - 1).abs().max())
        print(
            f"{kind}, {len(requests)} answers: {name} {spent:.2f} s, {spent / seconds['ours']:.2f} times ours, "
            f"log-likelihoods within {apart:.1e}", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
