"""The checks by name, and what each needs. Nothing of another project is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Check:
    """``module`` has a function ``run`` from exports to findings."""

    module: str
    needs: dict[str, str]
    """Import name to the name of the package that has it."""
    about: str

    def missing(self) -> list[str]:
        return [package for name, package in self.needs.items() if find_spec(name) is None]


CHECKS = {
    "lm-eval": Check(
        "benchmarks.interop.run_lm_eval",
        {"lm_eval": "lm-eval"},
        "a task of a YAML file and 24 paragraphs of the bundled evaluation text, run by its command line with the `hf` "
        "model, offline. Compared with `prunecomp.evaluate` on the same paragraphs, each with the BOS token before it, "
        "as lm-eval has it. Every paragraph fits into the context, so lm-eval's rolling windows are not exercised.",
    ),
    "mergekit": Check(
        "benchmarks.interop.run_mergekit",
        {"mergekit": "mergekit"},
        "runs the `mergekit.yml` that `--recipe` writes. Its tensors are to be those of the export in every bit. Only "
        "the fold upwards has a recipe.",
    ),
    "llama.cpp": Check(
        "benchmarks.interop.run_gguf",
        {"llama_cpp": "llama-cpp-python", "gguf": "gguf"},
        "`convert_hf_to_gguf.py` of the very llama.cpp that llama-cpp-python is built from (its sdist has it) makes a "
        "GGUF file in float32, with one change at call time: the converter knows a tokenizer's pre-tokenizer by a hash "
        "from a list, and the bundled model's own tokenizer, being nobody else's, is not on it. It is the byte-level "
        "one of GPT-2, and where the converter finds no entry it is told `gpt-2`. That this is true is what the "
        "comparison of token ids shows, on the whole evaluation text and some peculiar characters. The logits are of "
        "given token ids, with keys and values kept in float32 (by default llama.cpp keeps float16).",
    ),
    "llama.cpp families": Check(
        "benchmarks.interop.run_families",
        {"llama_cpp": "llama-cpp-python", "gguf": "gguf"},
        "the same with small random models of other families. Where all layers are of one kind, or llama.cpp reads the "
        "list of their kinds, any layers may go. **In Gemma 2, Gemma 3, SmolLM3, Cohere 2 and Llama 4 the kind of a "
        "layer (its window, its rotary embedding or none, its experts) repeats with a period, and llama.cpp goes by "
        "the number of a layer, not by the lists in the config. It misreads an export from which single layers are "
        "gone**, or refuses it (Llama 4): that is the control here. Where neighbours of a whole period go it reads the "
        "export right: give `--span 2` for Gemma 2, 6 for Gemma 3, 4 for the others, and `--layers` a multiple of it. "
        "transformers reads all of them right. (In Gemma 2 only the windows differ, so only texts longer than 4,096 "
        "tokens suffer.) Tried by hand and not in the table are families whose random models the two read differently, "
        "or the converter or llama.cpp does not take, before any layer is gone: Qwen3-MoE, Phi-3, GPT-OSS (for which "
        "llama.cpp's source has a period too, 2), DeepSeek-V3, GPT-2, OPT, GPT-NeoX, Falcon 7B, Ministral, and Mistral "
        "with a sliding window, which llama.cpp leaves out.",
    ),
    "peft": Check(
        "benchmarks.interop.run_peft",
        {"peft": "peft"},
        "LoRA of rank 8 on all linear modules of the layers, eight AdamW steps on one batch of the calibration text. "
        "Controls: the loss without a step, and the logits without the adapter.",
    ),
}
