"""llama.cpp's convert_hf_to_gguf.py for a checkpoint with a tokenizer that it has never seen.

    python convert.py LLAMA_CPP_FOLDER [--byte-level] CHECKPOINT --outfile OUT.gguf --outtype f32

The converter knows a pre-tokenizer by a hash from a list of published tokenizers. Where it finds none it is told
``gpt-2``, which is what a byte-level tokenizer with that model's pattern is; whoever calls this compares token ids.
With ``--byte-level`` it is not asked what kind of tokenizer a family has: random models have the bundled one.
"""

from __future__ import annotations

import sys
from typing import Any

sys.path.insert(0, sys.argv.pop(1))

import convert_hf_to_gguf as converter
from conversion.base import TextModel  # after the converter, which puts its own gguf before an installed one

look_up = TextModel.get_vocab_base_pre
find = converter.get_model_class


def look_up_or_gpt2(self: Any, tokenizer: Any) -> str:
    try:
        name: str = look_up(self, tokenizer)
    except NotImplementedError:
        return "gpt-2"
    return name


def find_byte_level(*arguments: Any, **named: Any) -> Any:
    found = find(*arguments, **named)
    found.set_vocab = TextModel._set_vocab_gpt2
    return found


TextModel.get_vocab_base_pre = look_up_or_gpt2
if "--byte-level" in sys.argv:
    sys.argv.remove("--byte-level")
    converter.get_model_class = find_byte_level
converter.main()
