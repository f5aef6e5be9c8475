"""A model of lm-eval (0.4.13) that is pruned in memory when it is loaded: ``prunecomp``.

    python -m prunecomp.integrations.lm_eval --model prunecomp \
        --model_args pretrained=MODEL,layers=5,calibration=text.txt --tasks hellaswag

is lm-eval's command line with one more model; lm-eval finds no plug-ins by itself. In Python, import this module first.
"""

from __future__ import annotations

import inspect
from typing import Any

import lm_eval.models  # noqa: F401  (first: a registry that holds something is not filled any more)
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import prunecomp

SHARED = ("revision", "tokenizer", "device", "dtype")
"""Arguments of lm-eval that say here how the dense model is loaded."""


@register_model("prunecomp")
class PrunedLM(HFLM):
    """``pretrained``, pruned by the arguments that are options of :func:`prunecomp.prune`; all others are those of
    lm-eval's ``hf``. A name that neither knows is an error of :func:`prunecomp.prune`, which names the nearest.

    ``result`` is the :class:`prunecomp.PruneResult`; :meth:`~prunecomp.PruneResult.save` writes the model that is
    evaluated.
    """

    result: prunecomp.PruneResult

    def __init__(
        self, pretrained: str | PreTrainedModel, revision: str | None = None, tokenizer: Any = None,
        device: str | None = None, dtype: Any = "auto", **arguments: Any,
    ) -> None:  # fmt: skip
        theirs = set(inspect.signature(HFLM.__init__).parameters) - {"pretrained", "kwargs", *SHARED}
        model: Any = pretrained
        if not isinstance(pretrained, PreTrainedModel):
            model = AutoModelForCausalLM.from_pretrained(pretrained, revision=revision or "main", dtype=dtype).eval()
            tokenizer = pretrained if tokenizer is None else tokenizer
        if device is not None:
            model = model.to(device)
        if isinstance(tokenizer, str):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer, revision=revision or "main")
        options = {name: value for name, value in arguments.items() if name not in theirs}
        self.result = prunecomp.prune(model, tokenizer=tokenizer, **options)
        self.result.apply(model)
        super().__init__(
            model, tokenizer=tokenizer, **{name: value for name, value in arguments.items() if name in theirs}
        )


if __name__ == "__main__":
    cli_evaluate()
