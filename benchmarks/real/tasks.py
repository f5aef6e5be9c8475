"""Seconds that a task of multiple choice takes us and lm-eval's own ``hf`` model, asked the same.

    python -m benchmarks.real.tasks models/SmolLM2-135M-Instruct --limit 12

It needs lm-eval (0.4.13), and no network: the questions are the 281 of MMLU that lie in its wheel as solved examples
(``tasks/mmlu/flan_cot_fewshot/_cot_prompts.json``, MIT). Each stands after the others of its subject, solved, and is
asked by the texts of its four answers, or by their letters. Both take turns, and the quickest of each counts, in
seconds of processor time; ``hf`` is given each of ``--batches``.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunecomp.evaluation.language import Language
from prunecomp.evaluation.tasks import Tasks, _described

EXEMPLARS = Path(lm_eval.__file__).parent / "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
QUESTION = re.compile(
    r"Q: (.+?)\s*\(A\) (.+?) \(B\) (.+?) \(C\) (.+?) \(D\) (.+?)\nA: .*?The answer is \(([A-D])\)", re.DOTALL
)
TASK = """task: mmlu_{kind}
dataset_path: json
test_split: train
dataset_kwargs:
  data_files: {data}
output_type: multiple_choice
doc_to_text: {kind}_start
doc_to_choice: {kind}
doc_to_target: answer
metric_list:
  - metric: acc
"""


def questions() -> list[dict[str, Any]]:
    """Each with what stands before it, and its answers, as texts and as letters."""
    rows = []
    for text in json.loads(EXEMPLARS.read_text(encoding="utf-8")).values():
        found = [(asked, [a, b, c, d], "ABCD".index(right)) for asked, a, b, c, d, right in QUESTION.findall(text)]
        for number, (_, ends, answer) in enumerate(found):
            order = [*found[:number], *found[number + 1 :], found[number]]
            plain = [(f"Q: {asked}\nA:", some[right]) for asked, some, right in order]
            listed = [
                ("\n".join([f"Q: {asked}", *map(". ".join, zip("ABCD", some, strict=True)), "A:"]), "ABCD"[right])
                for asked, some, right in order
            ]
            starts = ["\n\n".join([*map(" ".join, one[:-1]), one[-1][0]]) for one in (plain, listed)]
            rows.append({"answer": answer, "texts": ends, "letters": [*"ABCD"],
                         "texts_start": starts[0], "letters_start": starts[1]})  # fmt: skip
    return rows


def logs(samples: dict[str, Any]) -> torch.Tensor:
    """Log-likelihoods by question and answer, float64."""
    (those,) = samples.values()
    return torch.tensor([[log for log, _ in one["filtered_resps"]] for one in those], dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", type=int, default=12, help="questions")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(options.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with TemporaryDirectory() as folder:
        data = Path(folder) / "questions.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in questions()), encoding="utf-8")
        for kind in ("texts", "letters"):
            file = Path(folder) / f"{kind}.yaml"
            file.write_text(TASK.format(kind=kind, data=data), encoding="utf-8")
            measure(kind, str(file), model, tokenizer, options)


def measure(kind: str, file: str, model: Any, tokenizer: Any, options: argparse.Namespace) -> None:
    tasks = Tasks((file,), limit=options.limit)

    def theirs(batch: int) -> dict[str, Any]:
        hf = HFLM(model, tokenizer=tokenizer, batch_size=batch)
        found = lm_eval.simple_evaluate(hf, tasks=[_described(file)], limit=options.limit, verbosity="ERROR")
        samples: dict[str, Any] = found["samples"]
        return samples

    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: tasks.ask(Language(model, tokenizer, [])).samples,
        **{f"hf, batches of {batch}": lambda batch=batch: theirs(batch) for batch in options.batches},
    }
    seconds, found = {name: float("inf") for name in ways}, {}
    for _ in range(options.repeats):
        for name, way in ways.items():
            began = time.process_time()
            found[name] = logs(way())
            seconds[name] = min(seconds[name], time.process_time() - began)
    for name, spent in seconds.items():
        apart = float((found[name] / found["ours"] - 1).abs().max())
        print(
            f"{kind}, {found[name].numel()} answers: {name} {spent:.1f} s, {spent / seconds['ours']:.2f} times ours, "
            f"log-likelihoods within {apart:.1e}", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
